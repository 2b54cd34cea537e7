"""Masked kernels under any optimiser of Keras, and the topology updates that change their masks.

In go a compiled model and an optimiser, out come zeros that stay zero and updates that equal those of
NumPy. It imports ``network`` and ``engines``.
"""
