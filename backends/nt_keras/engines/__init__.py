"""Differences between Keras' engines: TensorFlow, JAX, and PyTorch; devices and layouts of arrays.

In go tensors and variables of any engine, out come the same operations on each. It imports nothing else of
this package.
"""
