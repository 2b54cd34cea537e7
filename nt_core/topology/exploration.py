"""Exploration rate of dynamic sparse training, and overlap of the heads' masks."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Bits: TypeAlias = NDArray[np.uint8]
"""A mask, eight positions to a byte, in C order; the last byte is padded with zeros."""

_ONES = np.array([number.bit_count() for number in range(256)], dtype=np.uint8)


def pack(active: NDArray[Any]) -> Bits:
    """Pack a mask, a bool array of any shape."""
    return np.packbits(active, axis=None)


def unpack(bits: Bits, size: int) -> NDArray[np.bool_]:
    """Return the flat mask of ``size`` positions that :func:`pack` packed.

    Example:
        >>> unpack(pack(np.array([True, False, True])), 3).tolist()
        [True, False, True]
    """
    return np.unpackbits(bits, count=size).view(np.bool_)


def count_bits(bits: Bits) -> int:
    """Count the positions that are set.

    Example:
        >>> count_bits(pack(np.array([True, False, True])))
        2
    """
    return int(_ONES[bits].sum(dtype=np.int64))


def seen_with(seen: Mapping[str, Bits], masks: Mapping[str, Bits]) -> dict[str, Bits]:
    """Add masks to the union of all earlier masks; the union of a new weight begins with its mask.

    ITOP's exploration rate R_s is the size of this union / number of all positions (Liu et al. 2021, §3.2).
    """
    return {name: bits | seen[name] if name in seen else bits for name, bits in masks.items()}


def head_overlap(masks: Mapping[str, Bits]) -> float | None:
    """Return the overlap of the heads' masks: the mean over pairs of heads of |A ∩ B| / |A ∪ B|.

    A and B are the connections of two heads, over all weights that both have. The overlap of two heads
    without any connection is 1.

    Args:
        masks: by full name, ``"head2/block/op.weight"``; masks of the backbone are ignored.

    Returns:
        Between 0 and 1; None with fewer than two heads, or where heads have no name in common.

    Example:
        >>> a, b = pack(np.array([1, 1, 0, 0])), pack(np.array([0, 1, 1, 0]))
        >>> head_overlap({"head1/fc.weight": a, "head2/fc.weight": b, "backbone/fc.weight": a})
        0.3333333333333333
    """
    heads: dict[str, dict[str, Bits]] = {}
    for name, bits in masks.items():
        part, _, weight = name.partition("/")
        if part.startswith("head"):
            heads.setdefault(part, {})[weight] = bits
    found = []
    for one, other in combinations(heads.values(), 2):
        shared = one.keys() & other.keys()
        if not shared:
            continue
        both = sum(count_bits(one[name] & other[name]) for name in shared)
        either = sum(count_bits(one[name] | other[name]) for name in shared)
        found.append(both / either if either else 1.0)
    return sum(found) / len(found) if found else None
