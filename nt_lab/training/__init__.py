"""Training (``nt train``): joins a spec, data, a backend, and a run folder.

Input: a :class:`nt_core.RunSpec`. Output: a finished run. This room imports ``runs``, ``console``,
``data``, and ``evaluation``.
"""
