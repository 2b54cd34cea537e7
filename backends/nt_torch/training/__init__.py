"""The training loop, with states, counts, loading of batches, and sharding among processes.

Input: a spec, a recipe, and batches. Output: a finished training, or states from which to resume. This room
imports ``processes``, ``batches``, ``network``, ``topology``, ``compile``, ``checkpoint``, and ``evaluate``.
"""
