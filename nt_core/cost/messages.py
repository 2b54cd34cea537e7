"""Communication volume of one topology update: number and bytes of collective calls.

The count follows :mod:`nt_torch.processes.shards` call by call; a test compares the numbers of calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nt_core.masks import DIGIT_BITS, Moment
from nt_core.policies import Criterion, Layer
from nt_core.random import Random
from nt_core.spec import EnsembleSpec
from nt_core.topology import DeclaredTopology

INTEGER = 8
"""Bytes of a number that is summed or compared, which is int64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Messages:
    """Collective calls and the bytes that each process contributes.

    Attributes:
        all_reduces: sums over processes.
        reduced: bytes summed.
        all_gathers: exchanges of one tensor of each process.
        gathered: bytes of a process's own tensors.
    """

    all_reduces: int = 0
    reduced: int = 0
    all_gathers: int = 0
    gathered: int = 0

    @property
    def calls(self) -> int:
        """Number of all collective calls, each of which waits for the slowest process."""
        return self.all_reduces + self.all_gathers

    def sent(self, ranks: int) -> int:
        """Return the bytes that each of ``ranks`` processes sends by ring algorithms.

        Example:
            >>> Messages(all_reduces=1, reduced=8, all_gathers=1, gathered=8).sent(4)
            36
        """
        return -(-2 * (ranks - 1) * self.reduced // ranks) + (ranks - 1) * self.gathered


def update_messages(spec: EnsembleSpec, *, ranks: int, sharded: bool) -> Messages:
    """Count the communication of one topology update, with the check of its gradients before the step.

    Where every process holds all weights, the processes exchange a digest of each mask. Where each holds a
    part, they search for the k-th largest score of each weight, digit by digit. A criterion that marks the
    pruned connections itself (Deep R) is counted as if it marked some of every weight. A criterion that
    divides by sign is counted as if connections of both signs were pruned.

    Args:
        spec: of the part that is trained at once.
        ranks: number of processes.
        sharded: whether each process holds a part of every weight.

    Example:
        >>> import nt_models
        >>> from nt_core import PRESETS
        >>> spec = PRESETS["rigl"](nt_models.mlp(inputs=64, hidden=(64,), classes=10))
        >>> update_messages(spec, ranks=2, sharded=True).reduced
        270560
    """
    topology = spec.topology
    if not topology.updates or (ranks == 1 and not sharded):
        return Messages()
    weights = len(spec.layout.sparsifiable)
    if not sharded:
        return Messages(all_gathers=1, gathered=INTEGER * weights)
    summed, gathers = [4 * weights], 0
    for placed in spec.layout.sparsifiable:
        sums, searches = _of_weight(topology, spec.counts[placed.name], placed.weight.size)
        summed += sums
        gathers += searches
    return Messages(
        all_reduces=len(summed),
        reduced=INTEGER * sum(summed),
        all_gathers=gathers,
        gathered=INTEGER * gathers,
    )


def _of_weight(topology: DeclaredTopology, active: int, size: int) -> tuple[list[int], int]:
    """Return the numbers in each sum that one weight's update takes, and how many searches there are."""
    gradient, momentum = topology.reads_gradient(), topology.momentum_beta is not None
    sums, searches = [1] * (gradient or momentum), 0  # whether what is kept is finite, before the step
    sums += [1] * (1 + gradient + momentum)  # the same of all that is read, after it
    sums += [1, 1]  # how many are active, how many are not
    sums += [1] * any(criterion.only_below_zero for criterion in topology.criteria)
    sums += [1] * topology.grows  # how many of those that grew had just been pruned
    count = topology.chosen(active, size)
    for criterion in topology.criteria:
        signs = 2 if criterion.by_sign else 1
        sums += [1] * (signs if signs > 1 else 0)
        for _ in range(signs):
            sums += [2, *(_histograms(criterion) if count else [])]
            searches += bool(count)
    return sums, searches


def _histograms(criterion: Criterion) -> Iterator[int]:
    """Yield the number of counts in each round, which finds the next digit of a score."""
    bits = 8 * _score_bytes(criterion)
    while bits:
        width = min(DIGIT_BITS, bits)
        bits -= width
        yield 1 << width


def _score_bytes(criterion: Criterion) -> int:
    """Return the bytes of a criterion's score of a float32 weight, found by scoring one weight."""
    one = np.ones(1, np.float32)
    layer = Layer(name="", weights=one, gradients=one, active=one > 0, momentum=one, shape=(1, 1))
    draws = Moment(0, Random(0)).draws("", "prune", from_start=criterion.from_start)
    return int(criterion(layer, slice(0, 1, 1), draws).dtype.itemsize)
