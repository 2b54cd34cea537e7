"""Runs: the folder that a training leaves and its lock, the backend that computes, signals, and progress.

In go names and records, out come chosen backends, specs, and folders that are complete or can be continued.
This room imports no other.
"""

from nt_lab.runs.folder import RunFolder

__all__ = ["RunFolder"]
