"""Methods beyond RigL in Keras: what they keep, what they count, what survives a stop."""

import keras
import numpy as np
import pytest
from published import *  # noqa: F403

import nt_keras
import nt_models
from nt_core import PRESETS, Dynamic, EnsembleSpec, MultiHead, TopologyError, initial_masks, initial_values
from nt_core.policies import Momentum
from nt_keras.compile import fill
from nt_keras.engines import engine
from nt_keras.topology.sparse import find_sparse
from tests.keras.topology.test_topology import (
    assert_exactly_sparse,
    assert_same,
    batch,
    gradients_of,
    masks_of,
    weights_of,
)

GRAPH = nt_models.mlp(inputs=6, hidden=(8,), classes=3)
BETA = 0.75
SNFS = Dynamic(sparsity=0.6, grow=Momentum(beta=BETA), scope="momentum", interval=2, drop_fraction=0.5)
HEADS = MultiHead(split=1, heads=2)


def made(topology=SNFS, *, seed=0, **options):
    model = nt_keras.compile(EnsembleSpec(graph=GRAPH, structure=HEADS, topology=topology), seed=seed)
    optimizer = nt_keras.sparse(
        keras.optimizers.SGD(0.1, momentum=0.9, **options), model, keep_gradients=True
    )
    model.compile(optimizer=optimizer, loss=nt_keras.ensemble_loss())
    model.build_optimizer()
    return model


@pytest.fixture(scope="module")
def bench():
    """Compile a training step once; call it to put a model of another topology where training starts."""
    model = made()
    initial = [engine.to_numpy(variable) for variable in model.optimizer.variables]

    def fresh(topology=SNFS, seed=0):
        for variable, value in zip(model.optimizer.variables, initial, strict=True):
            variable.assign(value)
        find_sparse(model.optimizer).seen = {}
        model.spec = EnsembleSpec(graph=GRAPH, structure=HEADS, topology=topology)
        layout = model.spec.layout
        fill(model, initial_values(layout, seed), initial_masks(topology, layout, seed))
        return model

    return fresh


def train(model, steps, *, first=0, seed=0, total=20):
    topology = nt_keras.Topology(model, total_steps=total, seed=seed)
    found = []
    for number in range(first, first + steps):
        model.train_on_batch(*batch(number))
        found.append(topology.step())
    return [changed for changed in found if changed is not None]


def momenta(model):
    optimizer = find_sparse(model.optimizer)
    masked = nt_keras.Topology(model, total_steps=20)._masked
    return {each.name: each.layer(optimizer).momentum.reshape(each.placed.weight.shape) for each in masked}


@pytest.mark.parametrize(
    "options", [{}, {"gradient_accumulation_steps": 2, "loss_scale_factor": 7.0, "clipnorm": 1e-3}], ids=str
)
def test_momentum_is_the_exponential_mean_of_dense_gradients_counted_once_for_each_step(options):
    """Averaged over micro-batches, before clipping, unscaled; calls that a loss scale skips do not count."""
    model = made(SNFS.replace(interval=100), **options)
    if options:
        inner = model.optimizer
        model.compile(
            optimizer=keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**4),
            loss=nt_keras.ensemble_loss(),
        )
    expected = dict.fromkeys(model.masked, 0.0)
    for number in range(3):
        pieces = [batch((number, piece)) for piece in range(options.get("gradient_accumulation_steps", 1))]
        truth = [gradients_of(model, *piece) for piece in pieces]  # accumulating changes no weight meanwhile
        for piece in pieces:
            if options and number == 1:
                model.train_on_batch(*batch(100), sample_weight=np.full(8, np.inf, np.float32))
            model.train_on_batch(*piece)
        for name in expected:
            mean = np.mean([found[name] for found in truth], axis=0)
            expected[name] = BETA * expected[name] + (1 - BETA) * mean
    for name, found in momenta(model).items():
        np.testing.assert_allclose(found, expected[name], rtol=1e-4, atol=1e-6)
        assert (found[~model.mask(name)] != 0).any()
    assert_exactly_sparse(model)


@pytest.mark.parametrize("preset", ["snfs", "mest", "deep_r", "cht", "chts"])
def test_totals_are_kept_and_what_is_inactive_is_exactly_zero(bench, preset):
    topology = PRESETS[preset](GRAPH, sparsity=0.6).topology.replace(interval=1)
    if preset == "snfs":
        topology = topology.replace(grow=Momentum(beta=BETA))
    model = bench(topology)
    counts, rate = dict(model.spec.counts), 0.0
    for number in range(6):
        for changed in train(model, 1, first=number):
            assert sum(changed.active.values()) == sum(counts.values())
            assert topology.scope == "momentum" or dict(changed.active) == counts
            assert changed.exploration_rate >= max(rate, 0.4 - 1e-2)
            assert 0 <= changed.head_overlap <= 1
            rate = changed.exploration_rate
        assert_exactly_sparse(model)
    assert rate > 0.4


def test_exploration_is_the_union_of_all_masks(bench):
    model = bench()
    seen, updates = masks_of(model), []
    for number in range(6):
        updates += train(model, 1, first=number)
        seen = {name: union | model.mask(name) for name, union in seen.items()}
    assert len(updates) == 3
    assert dict(updates[-1].explored) == {name: union.sum() for name, union in seen.items()}


def test_momentum_and_what_was_explored_survive_a_saved_model(bench, tmp_path):
    whole = bench()
    updates = train(whole, 4)
    whole.save(tmp_path / "half.keras")
    resumed = keras.models.load_model(tmp_path / "half.keras")
    assert_same(momenta(resumed), momenta(whole))
    updates = train(whole, 2, first=4)
    assert train(resumed, 2, first=4) == updates
    assert_same(weights_of(resumed), weights_of(whole))
    assert_same(masks_of(resumed), masks_of(whole))


def test_another_beta_than_the_optimizers_is_an_error(bench):
    model = bench(SNFS.replace(grow=Momentum(beta=0.5)))
    with pytest.raises(TopologyError, match=r"momentum_beta=0\.5, as the spec says, found 0\.75"):
        nt_keras.Topology(model, total_steps=9)
