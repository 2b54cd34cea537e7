"""The command line ``nt``: one file for each group of commands.

In go arguments, out come calls of the other rooms and what is printed of their results. It imports every
other room, each inside the function that needs it, so that help answers at once.
"""
