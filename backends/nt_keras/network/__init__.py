"""Network of a compiled model: the ``keras.Model`` of a spec, a lowering for each op, and layers.

Input: a spec and its layout. Output: a functional model whose logits have shape (B, M, …), and the loss of
its members. This room imports ``engines``.
"""
