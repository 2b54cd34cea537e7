"""Network of a compiled model: the module of a spec, a lowering for each op, and execution of heads.

Input: a spec and its layout. Output: :class:`~nt_torch.network.model.Ensemble`, whose logits have shape (M,
B, …), and the loss of its members. This room imports ``processes``.
"""
