"""Cost of the papers' methods (``nt cost``, ``nt scale``), computed from their graphs alone.

Input: specs. Output: tables for a terminal and for a page. This room imports ``tables``.
"""
