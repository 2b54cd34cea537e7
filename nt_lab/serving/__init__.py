"""``nt export``, ``nt predict``, and ``nt bench``: what was trained, served on a CPU.

In goes a run folder, out come files, predictions, and latencies. It imports ``data``, ``runs``, and
``tables``.
"""
