"""The update rule of NeuroTrails' own code, told in words and computed here anew.

Source: arXiv 2505.17909 and the code that its authors publish (github.com/bramgrooten/neurotrails, commit
bbb463f of 22 May 2025). None of that code is copied. For vision (``computer_vision/sparselearning/core.py``):

1. The optimiser takes its step; then the drop fraction is p(t) = 0.005 + (p − 0.005)·½(1 + cos(πt/T)), with T
   the number of all steps. An update follows every ΔT-th step, the last step included.
2. In each weight ⌈p(t)·active⌉ connections of smallest |w| become inactive. Their values stay for now.
3. As many inactive positions of largest |∂L/∂w| become active, of all that are inactive now. Those that were
   active before have their value and momentum still; all others start at 0.
4. Values and momentum of inactive positions become 0.

For language (``language_modeling/sparselearning/core.py``) the connections that stay are sampled with
probability ∝ |w|³, and their number is ⌈(1 − p(t))·active⌉; the losses of the heads are summed
(``torchrun_main.py``).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import nt_models
from nt_core.masks import Moment
from nt_core.policies import Layer, SoftMagnitude
from nt_core.random import Random
from nt_core.spec import PRESETS, EnsembleSpec
from nt_core.topology import ER, Dynamic, update

GRAPH = nt_models.mlp(inputs=9, hidden=(8, 7, 6), classes=3)
TOTAL = 1000


def drop_fraction(step: int) -> float:
    return 0.005 + (0.5 - 0.005) * 0.5 * (1 + math.cos(math.pi * step / TOTAL))


def told(layer: Layer, step: int) -> NDArray[np.bool_]:
    """Return the mask after an update for vision, by sorting."""
    assert layer.gradients is not None
    active = layer.active.copy()
    where = np.flatnonzero(active)
    by_size = where[np.argsort(abs(layer.weights[where]), kind="stable")]
    goes = math.ceil(drop_fraction(step) * where.size)
    active[by_size[:goes]] = False
    free = np.flatnonzero(~active)
    active[free[np.argsort(-abs(layer.gradients[free]), kind="stable")[:goes]]] = True
    return active


def after(preset: str, layer: Layer, step: int) -> tuple[NDArray[np.bool_], int]:
    """Return the mask after an update of a preset, and the number of connections that left and came back."""
    topology = PRESETS[preset](GRAPH).topology
    moment = Moment(step=step, random=Random(0))
    swap = update(topology, [layer], moment, total_steps=TOTAL, targets={})[layer.name]
    active = layer.active.copy()
    active[swap.pruned], active[swap.grown] = False, True
    return active, swap.returned


def random_layer(seed: int) -> Layer:
    rng = np.random.default_rng(seed)
    active = rng.random(int(rng.integers(1, 400))) < rng.uniform(0.05, 0.95)
    weights, gradients = rng.standard_normal((2, active.size)).astype(np.float32)
    return Layer(name="w", weights=weights * active, gradients=gradients, active=active)


def test_every_update_for_vision_is_the_one_that_is_told() -> None:
    returned = differs = 0
    for seed in range(200):
        layer, step = random_layer(seed), 100 * (seed % 10 + 1)
        mask, back = after("neurotrails_code", layer, step)
        np.testing.assert_array_equal(mask, told(layer, step))
        returned += back
        differs += bool((after("neurotrails", layer, step)[0] != mask).any())
    assert returned > 1000
    assert differs > 100


WEIGHTS = [0.9, -0.1, 0.4, -0.2, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0]
GRADIENTS = [0.0, 9.0, 5.0, 0.1, 6.0, 3.0, -4.0, 0.2, 0.3, 0.5]


@pytest.mark.parametrize(
    ("preset", "step", "left", "came"),
    [
        # p = 0.5: ⌈2.5⌉ = 3 leave (0.1, 0.2, 0.3). Of 8 free positions 1 and 4 come back, and 6 comes.
        ("neurotrails_code", 0, {3}, {6}),
        # The paper's text: ⌊2.5⌋ = 2 leave and stay away; 6 and 5 come.
        ("neurotrails", 0, {1, 3}, {5, 6}),
        # p = 0.005: one leaves, is the best candidate, and comes back.
        ("neurotrails_code", TOTAL, set(), set()),
        ("neurotrails", TOTAL, set(), set()),
    ],
)
def test_an_update_by_hand(preset: str, step: int, left: set[int], came: set[int]) -> None:
    weights, gradients = np.array(WEIGHTS), np.array(GRADIENTS)
    layer = Layer(name="w", weights=weights, gradients=gradients, active=weights != 0)
    mask, returned = after(preset, layer, step)
    assert set(np.flatnonzero(layer.active & ~mask)) == left
    assert set(np.flatnonzero(mask & ~layer.active)) == came
    assert returned == {("neurotrails_code", 0): 2, ("neurotrails_code", TOTAL): 1}.get((preset, step), 0)


def dynamic(preset: str, **changes: Any) -> tuple[EnsembleSpec, Dynamic]:
    spec = PRESETS[preset](GRAPH, **changes)
    assert isinstance(spec.topology, Dynamic)
    return spec, spec.topology


@pytest.mark.parametrize("preset", ["neurotrails_code", "neurotrails_lm_code"])
def test_the_cosine_ends_at_its_floor_and_the_last_step_has_an_update(preset: str) -> None:
    _, topology = dynamic(preset)
    for step in (1, 250, 500, 999, 1000):
        assert topology.drop_fraction.at(step, TOTAL) == pytest.approx(drop_fraction(step), rel=1e-14)
    due = [step for step in range(1, TOTAL + 1) if topology.due(step, TOTAL)]
    assert due == list(range(topology.interval, TOTAL + 1, topology.interval))
    assert topology.next_due(TOTAL - 1, TOTAL) == TOTAL
    assert topology.next_due(TOTAL, TOTAL) is None


def test_for_language_what_stays_is_rounded_up_losses_are_summed_and_nothing_is_listed_as_dense() -> None:
    spec, topology = dynamic("neurotrails_lm_code", sparsity=0.2)
    assert (spec.loss_reduction, topology.interval, topology.allocation) == ("sum", 50, ER())
    assert topology.prune == SoftMagnitude(temperature=3.0)
    assert spec.structure == PRESETS["neurotrails_lm"](GRAPH).structure
    for seed in range(100):
        layer = random_layer(seed)
        active = int(layer.active.sum())
        moment = Moment(step=400, random=Random(seed))
        swap = update(topology, [layer], moment, total_steps=TOTAL, targets={})["w"]
        stays = math.ceil((1 - drop_fraction(400)) * active - 1e-9)
        assert len(swap.pruned) + swap.returned == active - stays
        assert len(swap.pruned) == len(swap.grown)


def test_for_vision_losses_are_averaged_and_the_rest_is_the_papers() -> None:
    spec, topology = dynamic("neurotrails_code", split=2, heads=5, sparsity=0.7)
    paper, papers = dynamic("neurotrails", split=2, heads=5, sparsity=0.7)
    assert spec.loss_reduction == "mean"
    plain = topology.replace(semantics=papers.semantics, drop_fraction=papers.drop_fraction)
    assert spec.replace(topology=plain) == paper
