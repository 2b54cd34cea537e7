"""Masks, and the exact arithmetic that selects their elements, the same in every backend.

Input: scores, flags, and keyed random bits. Output: positions, counts that add up to a budget, and masks as
CSR. This room imports the ground.
"""

from nt_core.masks.apportion import hypergeometric, share_out
from nt_core.masks.arrays import NUMPY, Array, Arrays, Draws, Moment
from nt_core.masks.bipartite import Rule, link_scores
from nt_core.masks.mask import Mask
from nt_core.masks.selection import DIGIT_BITS, Scores, top_k

__all__ = [
    "DIGIT_BITS",
    "NUMPY",
    "Array",
    "Arrays",
    "Draws",
    "Mask",
    "Moment",
    "Rule",
    "Scores",
    "hypergeometric",
    "link_scores",
    "share_out",
    "top_k",
]
