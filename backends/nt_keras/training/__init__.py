"""The training loop, which is ``fit``, with states, counts and reports.

Input: a spec, a recipe, and batches. Output: a finished training, or states from which to resume. This room
imports ``batches``, ``engines``, ``network``, ``topology``, ``compile``, ``checkpoint``, and ``evaluate``.
"""
