"""Data: from a folder, a file, or a hub to batches that every backend reads in the same order.

In go the ``data`` fields of a spec file, out come shuffled, augmented, normalised examples or sequences of
tokens. It imports no other room of this package.
"""

from nt_lab.data.splits import Examples, Normalisation, Split, limited, load, load_test, trained_on

__all__ = ["Examples", "Normalisation", "Split", "limited", "load", "load_test", "trained_on"]
