"""What several processes choose together, each from its part, is what one chooses from the whole."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from nt_core.arrays import NUMPY
from nt_torch.shards import ShardedArrays

sys.path.insert(0, str(Path(__file__).parent))

from ranks import in_processes


def cases():
    """Scores with many ties, signed zeros, infinities, of any size; a share of positions; how many."""
    rng = np.random.default_rng(0)
    for kind in (np.float32, np.float64, np.float16):
        for size in (0, 1, 2, 7, 64, 1000):
            for _ in range(6):
                scores = rng.standard_normal(size).astype(kind)
                if rng.random() < 0.5:
                    scores = np.round(scores * 2) / 2 * rng.choice([-1, 1], size)
                if size > 5 and rng.random() < 0.5:
                    scores[:4] = [np.inf, -np.inf, 0.0, -0.0]
                among = rng.random(size) < rng.choice([0.1, 0.5, 1.0])
                yield (
                    scores.astype(kind),
                    among,
                    int(rng.integers(0, among.sum() + 1)),
                    bool(rng.random() < 0.5),
                )


def choose(rank, world):
    torch.distributed.init_process_group("gloo")
    arrays, found = ShardedArrays(torch.distributed.group.WORLD, torch.device("cpu"), {}), []
    for scores, among, k, inverse in cases():
        ends = np.sort(np.random.default_rng(len(scores)).integers(0, len(scores) + 1, world - 1))
        start, stop = [0, *ends, len(scores)][rank : rank + 2]
        own = scores[start:stop], (among ^ inverse)[start:stop]
        found.append((arrays.top_k(*own, k, inverse=inverse) + start, arrays.count(own[1])))
    errors = []
    for bad in ([1.0, np.nan], [1.0, 2.0]):
        try:
            arrays.top_k(np.array(bad), np.ones(2, np.bool_), 2 * world + (bad[1] == 2.0))
        except ValueError as error:
            errors.append(str(error))
    return found, errors


def test_the_choice_is_that_of_one_process():
    for world in (1, 2, 3):
        answers = in_processes(world, choose, world)
        assert [error for _, error in answers] == [None] * world
        for number, (scores, among, k, inverse) in enumerate(cases()):
            parts = [found[number] for (found, _), _ in answers]
            wanted = NUMPY.top_k(scores, among ^ inverse, k, inverse=inverse)
            np.testing.assert_array_equal(np.concatenate([chosen for chosen, _ in parts]), wanted)
            assert {count for _, count in parts} == {int((among ^ inverse).sum())}
        for (_, errors), _ in answers:
            assert errors == [
                f"scores: {world} are NaN; skip this update",
                f"k: {2 * world + 1} positions requested, {2 * world} available; choose 0 to {2 * world}",
            ]
