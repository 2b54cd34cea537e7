"""``nt cost`` and ``nt scale``: what the methods of the papers cost, from their graphs alone.

In go specs, out come tables for a terminal and for a page. It imports ``tables``.
"""
