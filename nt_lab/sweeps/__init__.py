"""Sweeps (``nt sweep``): a grid of runs, each in a process of its own, with its tables and plots.

Input: a spec file and values for its fields. Output: run folders, one table, and plots. This room imports
``tables``, ``runs``, and ``training``.
"""
