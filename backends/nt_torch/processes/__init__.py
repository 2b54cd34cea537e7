"""Several processes that train one model: what they share, and the choices they make together.

In go process groups and sharded tensors, out come sums and selections that equal those of one process. It
imports nothing else of this package.
"""
