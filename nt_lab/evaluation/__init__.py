"""Evaluation (``nt evaluate``) of a finished run on its test split, on corrupted, and on foreign data.

Input: a run folder. Output: metrics. This room imports ``runs`` and ``data``.
"""
