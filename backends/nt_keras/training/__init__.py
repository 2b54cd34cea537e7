"""The training loop, which is ``fit``, with all that it saves and counts.

In go a spec, a recipe, and batches; out comes a finished training, or states to continue from. It imports
every other room of this package.
"""
