"""Differences between Keras' engines: TensorFlow, JAX, and PyTorch; devices and layouts of arrays.

Input: tensors and variables of any engine. Output: the same operations on each. This room imports no other.
"""
