"""What a compiled model computes: the ``keras.Model`` of a spec, a lowering for each op, and layers for them.

In go a spec and its layout, out come a functional model whose logits have shape (B, M, …), and the loss of
its members. It imports ``engines`` and nothing else of this package.
"""
