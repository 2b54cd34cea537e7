"""``nt train``: joins a spec, data, a backend, and a run folder.

In goes a :class:`nt_core.RunSpec`, out comes a finished run. It imports ``data``, ``evaluation``, ``runs``,
and ``console``.
"""
