"""The command line ``nt``: one file for each group of commands.

Input: arguments. Output: calls of the other rooms, and their printed results. Every other room is imported
inside the function that needs it, so that help answers at once.
"""
