"""``nt sweep``: a grid of runs, each in a process of its own, with its tables and plots.

In go a spec file and values for its fields, out come run folders, one table, and plots. It imports ``runs``,
``training``, and ``tables``.
"""
