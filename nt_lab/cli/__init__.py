"""The command line ``nt``: one file for each group of commands.

Input: arguments. Output: calls of the other rooms, and their printed results. Each import is inside the
function that needs it, so that help answers at once. This room imports ``tables``, ``runs``, ``console``,
``data``, ``papers``, ``evaluation``, ``serving``, ``training``, and ``sweeps``.
"""
