"""Loading of data from a folder, a file or a hub into batches that every backend reads in the same order.

Input: the ``data`` fields of a spec file. Output: shuffled, augmented, normalised examples, or sequences of
tokens. This room imports no other.
"""

from nt_core.training import Normalisation
from nt_lab.data.advice import spaced
from nt_lab.data.splits import Examples, Split, limited, load, load_test, trained_on

__all__ = ["Examples", "Normalisation", "Split", "limited", "load", "load_test", "spaced", "trained_on"]
