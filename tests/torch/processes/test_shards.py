"""What several processes choose together, each from its part, is what one chooses from the whole."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from nt_core.masks import NUMPY
from nt_core.random import Random
from nt_torch.processes.shards import ShardedArrays
from nt_torch.topology.arrays import TorchArrays

sys.path.insert(0, str(Path(__file__).parents[1]))

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
    cpu = torch.device("cpu")
    arrays, found = ShardedArrays(torch.distributed.group.WORLD, cpu, {"w": 5}), []
    tensors = replace(arrays, own=TorchArrays(cpu))
    for scores, among, k, inverse in cases():
        ends = np.sort(np.random.default_rng(len(scores)).integers(0, len(scores) + 1, world - 1))
        start, stop = [0, *ends, len(scores)][rank : rank + 2]
        own = scores[start:stop], (among ^ inverse)[start:stop]
        chosen, count = arrays.top_k(*own, k, inverse=inverse), arrays.count(own[1])
        as_tensors = torch.tensor(own[0]), torch.tensor(own[1])
        np.testing.assert_array_equal(tensors.top_k(*as_tensors, k, inverse=inverse).numpy(), chosen)
        assert tensors.count(as_tensors[1]) == count
        found.append((chosen + start, count))
    draws = [each.draws(Random(0), weight="w", step=1, purpose="grow") for each in (arrays, tensors)]
    numbers = [np.asarray(each.uniform(slice(0, 9, 1))) for each in draws]
    np.testing.assert_array_equal(*numbers)
    whole = Random(0).at(weight="w", step=1, purpose="grow").uniform(slice(5, 14, 1))
    np.testing.assert_array_equal(numbers[0], whole)
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
