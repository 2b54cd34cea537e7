"""Several processes that train one model: communication, sharded weights, and joint selections.

Input: process groups and sharded tensors. Output: sums and selections that equal those of one process. This
room imports no other.
"""
