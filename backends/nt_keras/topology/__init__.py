"""Masked kernels under any optimiser of Keras, and the topology updates that change their masks.

Input: a compiled model and an optimiser. Output: inactive weights that stay zero, and updates that equal
those of NumPy. This room imports ``engines`` and ``network``.
"""
