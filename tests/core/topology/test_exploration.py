from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nt_core.topology import Bits, pack, seen_with
from nt_core.topology.exploration import count_bits, head_overlap

SIZES = {"a.weight": 5, "b.weight": 11}
Masks = dict[str, Any]
masks = st.fixed_dictionaries({name: hnp.arrays(np.bool_, size) for name, size in SIZES.items()})


@settings(max_examples=50)
@given(st.lists(masks, min_size=1, max_size=5))
def test_what_was_explored_is_the_union_of_all_masks(history: list[Masks]) -> None:
    seen: dict[str, Bits] = {}
    for now in history:
        before = {name: count_bits(bits) for name, bits in seen.items()}
        seen = seen_with(seen, {name: pack(active) for name, active in now.items()})
        assert all(count_bits(seen[name]) >= count for name, count in before.items())
    for name in SIZES:
        union = np.any([now[name] for now in history], axis=0)
        assert count_bits(seen[name]) == union.sum()
        np.testing.assert_array_equal(seen[name], pack(union))


@settings(max_examples=50)
@given(st.lists(masks, min_size=2, max_size=4), masks)
def test_overlap_is_the_mean_over_pairs_of_shared_over_all(heads: list[Masks], backbone: Masks) -> None:
    named = {f"head{m}/{name}": active for m, head in enumerate(heads, 1) for name, active in head.items()}
    named |= {f"backbone/{name}": active for name, active in backbone.items()}
    whole = [np.concatenate([head[name] for name in SIZES]) for head in heads]
    pairs = [
        (one & other).sum() / (one | other).sum() if (one | other).any() else 1.0
        for one, other in combinations(whole, 2)
    ]
    found = head_overlap({name: pack(active) for name, active in named.items()})
    assert found == pytest.approx(np.mean(pairs))


def test_one_head_has_no_pair() -> None:
    bits = pack(np.ones(3, np.bool_))
    assert head_overlap({}) is None
    assert head_overlap({"head1/a.weight": bits, "backbone/a.weight": bits}) is None
    assert head_overlap({"head1/a.weight": bits, "head2/b.weight": bits}) is None
    assert head_overlap({"head1/a.weight": bits, "head10/a.weight": bits}) == 1.0
