"""``nt evaluate``: measures a finished run on its test split, on corrupted, and on foreign data.

In goes a run folder, out come metrics. It imports ``data`` and ``runs``.
"""
