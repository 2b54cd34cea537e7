"""What a compiled model computes: the module of a spec, a lowering for each op, and ways of running heads.

In go a spec and its layout, out comes :class:`~nt_torch.network.model.Ensemble`, whose logits have shape
(M, B, …), and the loss of its members. It imports ``processes`` and nothing else of this package.
"""
