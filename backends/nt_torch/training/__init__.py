"""The training loop, with all that it saves, counts, loads, and divides among processes.

In go a spec, a recipe, and batches; out comes a finished training, or states to continue from. It imports
every other room of this package.
"""
