"""Serving of a trained ensemble on a CPU (``nt export``, ``nt predict``, ``nt bench``).

Input: a run folder. Output: files, predictions, and latencies. This room imports ``tables``, ``runs``, and
``data``.
"""
