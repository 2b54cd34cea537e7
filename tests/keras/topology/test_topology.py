"""Sparse-topology training by Keras keeps its promises, whatever the optimiser does."""

import inspect
from functools import cache, partial

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from own_topologies import test_a_topology_of_ones_own_trains  # noqa: F401
from topologies import topologies

import nt_keras
import nt_models
from nt_core import (
    PRESETS,
    Dynamic,
    EnsembleSpec,
    GradualPruning,
    MultiHead,
    Random,
    Semantics,
    Single,
    Static,
    TopologyError,
    initial_masks,
    initial_values,
)
from nt_core.masks import Moment
from nt_core.policies import GROWS, AtRandom, Layer, Magnitude, Swap, swap
from nt_core.reference import forward, value_and_gradients
from nt_core.topology import update
from nt_keras.compile import Ensemble, fill
from nt_keras.engines import engine
from nt_keras.topology import optimizers as recipes
from nt_keras.topology.sparse import find_sparse
from nt_keras.topology.zeros import ZERO_STAYS_ZERO, keeps_zeros

ENGINE = keras.backend.backend()
GRAPH = nt_models.mlp(inputs=6, hidden=(8,), classes=3)
optimizers = keras.optimizers


class Noisy(optimizers.SGD):
    """An optimiser that moves every weight, with variables that are never zero."""

    def build(self, variables):
        super().build(variables)
        self.anything = self.add_optimizer_variables(variables, "anything", initializer="ones")

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient, variable, learning_rate)
        anything = self.anything[self._get_variable_index(variable)]
        self.assign(anything, anything + 1.0)
        self.assign_add(variable, 0.1 * keras.ops.cos(anything + 10 * variable))


OPTIMIZERS = {
    "sgd": partial(optimizers.SGD, 0.1),
    "sgd momentum decay": partial(optimizers.SGD, 0.1, momentum=0.9, weight_decay=1e-2),
    "sgd nesterov clipvalue": partial(optimizers.SGD, 0.1, momentum=0.9, nesterov=True, clipvalue=0.1),
    "sgd accumulation momentum": partial(optimizers.SGD, 0.1, momentum=0.9, gradient_accumulation_steps=2),
    "adam": partial(optimizers.Adam, 1e-2),
    "adam amsgrad clipnorm": partial(optimizers.Adam, 1e-2, amsgrad=True, clipnorm=0.1),
    "adam global_clipnorm": partial(optimizers.Adam, 1e-2, global_clipnorm=0.1),
    "adam scaled": partial(optimizers.Adam, 1e-2, loss_scale_factor=8.0),
    "adam average": partial(optimizers.Adam, 1e-2, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2),
    "adamw average accumulation": partial(
        optimizers.AdamW, 1e-2, use_ema=True, gradient_accumulation_steps=3, global_clipnorm=0.1
    ),
    "nadam": partial(optimizers.Nadam, 1e-2, weight_decay=1e-2),
    "rmsprop": partial(optimizers.RMSprop, 1e-2),
    "rmsprop momentum centered": partial(optimizers.RMSprop, 1e-2, momentum=0.9, centered=True),
    "adagrad": partial(optimizers.Adagrad, 1e-2),
    "adadelta": partial(optimizers.Adadelta, 1.0),
    "adamax": partial(optimizers.Adamax, 1e-2),
    "lion": partial(optimizers.Lion, 1e-3, weight_decay=1e-2),
    "ftrl": partial(optimizers.Ftrl, 1e-1, l2_regularization_strength=1e-3),
    "lamb": partial(optimizers.Lamb, 1e-2),
    "adafactor": partial(optimizers.Adafactor, 1e-2, epsilon_1=1e-16),
    "adafactor accumulation": partial(
        optimizers.Adafactor, 1e-2, epsilon_1=1e-16, gradient_accumulation_steps=2
    ),
    "muon": partial(optimizers.Muon, 1e-2, exclude_layers=["bias"]),
    "recipe sgd": partial(recipes.SGD, 0.1, momentum=0.9, nesterov=True, l2=1e-2),
    "recipe adam": partial(recipes.Adam, 1e-2, l2=1e-2),
    "noisy": partial(Noisy, 0.1),
    "noisy average accumulation": partial(Noisy, 0.1, use_ema=True, gradient_accumulation_steps=2),
}


def spec_of(topology, structure=None, graph=GRAPH):
    return EnsembleSpec(graph=graph, structure=structure or MultiHead(split=1, heads=2), topology=topology)


def batch(seed, size=8):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(size, 6)).astype(np.float32), generator.integers(0, 3, size)


def made(spec, optimizer, *, seed=0, **options):
    """Make a model and compile it for training."""
    model = nt_keras.compile(spec, seed=seed, dtype=options.pop("dtype", None))
    keep = options.pop("keep_gradients", None)
    model.compile(
        optimizer=nt_keras.sparse(optimizer, model, keep_gradients=keep),
        loss=nt_keras.ensemble_loss(),
        **options,
    )
    return model


def run(model, steps, *, after=lambda *_: None, total=20, seed=0, first=0, **options):
    """Train for some calls in a loop of one's own."""
    topology = nt_keras.Topology(model, total_steps=total, seed=seed, **options)
    for number in range(first, first + steps):
        model.train_on_batch(*batch(number))
        after(model, topology.step())
    return topology


def weights_of(model):
    return {name: model.array(name) for name in (placed.name for placed in model.spec.layout.weights)}


def masks_of(model):
    return {name: model.mask(name) for name in model.masked}


def slots_of(model, name):
    kernel = model.variable(name)
    return [engine.to_numpy(slot) for slot in find_sparse(model.optimizer).slots(kernel)]


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def assert_exactly_sparse(model):
    optimizer = find_sparse(model.optimizer)
    for name in model.masked:
        kernel = model.variable(name)
        inactive = ~engine.to_numpy(kernel.mask)
        np.testing.assert_array_equal(engine.to_numpy(optimizer.beside(kernel).mask), ~inactive, err_msg=name)
        assert np.isfinite(engine.to_numpy(kernel)).all(), name
        assert (engine.to_numpy(kernel)[inactive] == 0).all(), name
        for slot in optimizer.slots(kernel):
            assert (engine.to_numpy(slot)[inactive] == 0).all(), slot.path


@cache
def bench(name, replaced):
    """Compile a training step once for all topologies: they differ outside of it only."""
    topology = Dynamic(sparsity=0.5, semantics=Semantics(optimizer_step="replaced" if replaced else "taken"))
    model = Ensemble(spec_of(topology))
    optimizer = nt_keras.sparse(OPTIMIZERS[name](), model, keep_gradients=True)
    model.compile(optimizer=optimizer, loss=nt_keras.ensemble_loss())
    model.build_optimizer()
    return model, [engine.to_numpy(variable) for variable in optimizer.variables]


def fresh(name, topology, seed):
    """Put a bench's model and optimiser where a new training starts."""
    model, initial = bench(name, topology.replaces_step)
    for variable, value in zip(model.optimizer.variables, initial, strict=True):
        variable.assign(value)
    model.spec = spec_of(topology)
    layout = model.spec.layout
    fill(model, initial_values(layout, seed), initial_masks(topology, layout, seed))
    return model


TOPOLOGIES = topologies(sparsest=0.95, grow=[kind for kind in GROWS if kind != "momentum"])


@pytest.mark.parametrize("name", OPTIMIZERS)
@settings(max_examples=6)
@given(topology=TOPOLOGIES, seed=st.integers(0, 100))
def test_counts_are_kept_and_inactive_weights_and_variables_are_zero_after_every_step(name, topology, seed):
    model = fresh(name, topology, seed)
    counts = dict(model.spec.counts)

    def check(model, changed):
        assert_exactly_sparse(model)
        assert {name: int(mask.sum()) for name, mask in masks_of(model).items()} == counts
        if changed is not None:
            assert changed.pruned == changed.grown
            assert changed.active == counts

    run(model, 6, after=check, seed=seed)


@pytest.mark.parametrize("name", ["sgd momentum decay", "noisy average accumulation"])
@given(seed=st.integers(0, 100), scope=st.sampled_from(["layer", "global"]))
@settings(max_examples=4)
def test_gradual_pruning_ends_at_the_exact_total(name, seed, scope):
    model = fresh(name, GradualPruning(sparsity=0.7, interval=2, scope=scope), seed)
    totals = []

    def check(model, _):
        assert_exactly_sparse(model)
        totals.append(sum(int(mask.sum()) for mask in masks_of(model).values()))

    run(model, 10 * find_sparse(model.optimizer).accumulation, after=check, total=10, seed=seed)
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] == sum(model.spec.counts.values())


def test_global_scope_keeps_the_total():
    model = fresh("adam", Dynamic(sparsity=0.6, scope="global", interval=1), 0)

    def check(model, _):
        assert_exactly_sparse(model)
        assert sum(int(mask.sum()) for mask in masks_of(model).values()) == sum(model.spec.counts.values())

    run(model, 6, after=check)


KEEPERS = [make for make in OPTIMIZERS.values() if make.func in ZERO_STAYS_ZERO]


def test_every_optimizer_that_is_not_masked_after_its_step_is_tested():
    assert {make.func for make in KEEPERS} == set(ZERO_STAYS_ZERO)
    assert set(recipes.OURS) <= set(ZERO_STAYS_ZERO)
    every = {
        kind
        for kind in vars(optimizers).values()
        if inspect.isclass(kind) and issubclass(kind, optimizers.Optimizer) and "update_step" in vars(kind)
    }
    untested = every - {make.func for make in OPTIMIZERS.values()}
    assert {kind.__name__ for kind in untested} <= {"ScheduleFreeAdamW"}


@pytest.mark.parametrize("make", KEEPERS, ids=lambda make: f"{make.func.__name__} {sorted(make.keywords)}")
@settings(max_examples=4)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-30, 1.0, 1e15]))
def test_zero_stays_zero_without_masking(make, seed, scale):
    """Where weight, variables and gradient are 0, they stay so, beside neighbours of any size."""
    generator = np.random.default_rng(seed)
    shape, zero = (3, 4), generator.random((3, 4)) < 0.5
    values = np.where(zero, 0, generator.normal(size=shape)).astype(np.float32)
    variable = keras.Variable(values)
    optimizer = make()
    optimizer.build([variable])
    assert keeps_zeros(optimizer, [variable])
    slots = [slot for slot in optimizer.variables if tuple(slot.shape) == shape]
    for slot in slots:
        slot.assign(np.where(zero, 0, engine.to_numpy(slot)))
    for _ in range(4):
        gradient = np.where(zero, 0, scale * generator.normal(size=shape)).astype(np.float32)
        with no_gradients():
            optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
        for each in (variable, *slots):
            assert (engine.to_numpy(each)[zero] == 0).all(), each.path


def no_gradients():
    if ENGINE == "torch":
        import torch

        return torch.no_grad()
    return engine.scope_of(keras.Variable(0.0))


@pytest.mark.parametrize(
    "make",
    [
        partial(optimizers.Adam, epsilon=0.0),
        OPTIMIZERS["noisy"],
        optimizers.Ftrl,
        optimizers.Adafactor,
        optimizers.Muon,
        type("Mine", (optimizers.SGD,), {}),
    ],
)
def test_other_optimizers_are_masked_after_their_step(make):
    assert not keeps_zeros(make(), [])


def test_inactive_weights_are_zero_where_an_optimizer_divides_zero_by_zero():
    model = made(spec_of(Static(sparsity=0.8)), optimizers.Adam(1e-2, epsilon=0.0))
    for number in range(3):
        model.train_on_batch(*batch(number))
        for name in model.masked:
            assert (model.array(name)[~model.mask(name)] == 0).all()


@pytest.mark.parametrize(
    "optimizer",
    [partial(optimizers.Adafactor, epsilon_1=1e-30), partial(optimizers.Ftrl, beta=0.0)],
    ids=["adafactor", "ftrl"],
)
def test_an_optimizer_that_divides_zero_by_zero_for_every_weight_is_warned_of(optimizer):
    with pytest.warns(UserWarning, match="divides 0 by 0"):
        made(spec_of(Static(sparsity=0.8)), optimizer())


def test_an_epsilon_that_rounds_to_zero_is_masked_after_the_step():
    variable = keras.Variable([1.0], dtype="float16")
    assert not keeps_zeros(optimizers.Adam(epsilon=1e-9), [variable])


def gradients_of(model, x, y):
    """Compute the dense gradients of a batch's loss by NumPy, in float64."""
    layout, values = model.spec.layout, {n: v.astype(np.float64) for n, v in weights_of(model).items()}
    logits = forward(layout, values, x.astype(np.float64), training=True)
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    upstream = (odds / odds.sum(axis=-1, keepdims=True) - np.eye(3)[y]) / (len(logits) * len(y))
    return value_and_gradients(layout, values, x.astype(np.float64), upstream).gradients


SEEN = {
    "plain": lambda: optimizers.SGD(0.1),
    "clipnorm": lambda: optimizers.SGD(0.1, clipnorm=1e-3),
    "global_clipnorm": lambda: optimizers.SGD(0.1, global_clipnorm=1e-3),
    "clipvalue": lambda: optimizers.SGD(0.1, clipvalue=1e-3),
    "scaled": lambda: optimizers.SGD(0.1, loss_scale_factor=1000.0),
    "accumulated": lambda: optimizers.SGD(0.1, gradient_accumulation_steps=3),
    "all": lambda: optimizers.SGD(
        0.1, gradient_accumulation_steps=2, loss_scale_factor=7.0, clipnorm=1e-3, weight_decay=0.1
    ),
}


@pytest.mark.parametrize("semantics", ["taken", "replaced"])
@pytest.mark.parametrize("name", SEEN)
def test_an_update_chooses_what_the_core_chooses_from_the_batchs_dense_gradient(name, semantics):
    """Averaged over micro-batches, before clipping, unscaled."""
    topology = Dynamic(
        sparsity=0.6,
        interval=2,
        drop_fraction=0.5,
        prune="magnitude_and_gradient",
        semantics=Semantics(optimizer_step=semantics, regrow="return"),
    )
    model = made(spec_of(topology), SEEN[name]())
    tracker = nt_keras.Topology(model, total_steps=20, seed=3)
    optimizer = find_sparse(model.optimizer)
    for number in range(1, 5):
        pieces = [batch((number, piece)) for piece in range(optimizer.accumulation)]
        truth = [gradients_of(model, *piece) for piece in pieces]
        masks = masks_of(model)
        for piece in pieces[:-1]:
            model.train_on_batch(*piece)
            assert tracker.step() is None
        model.train_on_batch(*pieces[-1])
        if number % 2:
            assert tracker.step() is None
            continue
        layers = []
        for each in tracker._masked:
            layer = each.layer(optimizer)
            mean = np.mean([found[each.name] for found in truth], axis=0).ravel()
            np.testing.assert_allclose(layer.gradients, mean, atol=1e-6, rtol=1e-4)
            np.testing.assert_array_equal(layer.active, masks[each.name].ravel())
            layers.append(
                Layer(name=each.name, weights=layer.weights, gradients=layer.gradients, active=layer.active)
            )
        expected = update(
            topology,
            layers,
            Moment(number, Random(3)),
            total_steps=20,
            targets=topology.final_counts(model.spec.layout),
        )
        changed = tracker.step()
        assert changed.step == number
        for each in tracker._masked:
            active = masks[each.name].ravel().copy()
            active[expected[each.name].pruned], active[expected[each.name].grown] = False, True
            np.testing.assert_array_equal(model.mask(each.name).ravel(), active)
            assert len(expected[each.name].grown) == changed.grown[each.name]


def test_the_masks_change_and_weights_grow_where_the_gradient_is_largest():
    model = made(spec_of(Dynamic(sparsity=0.5, interval=1, drop_fraction=0.5), Single()), optimizers.SGD(0.1))
    before, gradients = masks_of(model), gradients_of(model, *batch(0))
    changes = []
    run(model, 1, after=lambda _, changed: changes.append(changed), total=100)
    for name, after in masks_of(model).items():
        grown, passed_over = after & ~before[name], ~after & ~before[name]
        assert int(grown.sum()) == changes[0].grown[name] > 0
        assert abs(gradients[name][grown]).min() >= abs(gradients[name][passed_over]).max(initial=0) - 1e-6


def test_an_optimizer_sees_the_sparse_models_gradient():
    """Adafactor's row and column sums, LAMB's norms and the like mix inactive elements into active ones."""

    class Spy(optimizers.SGD):
        def build(self, variables):
            super().build(variables)
            self.seen = self.add_optimizer_variables(variables, "seen")

        def update_step(self, gradient, variable, learning_rate):
            self.assign(self.seen[self._get_variable_index(variable)], gradient)
            super().update_step(gradient, variable, learning_rate)

    spy = Spy(0.1)
    model = made(spec_of(Static(sparsity=0.7)), spy)
    truth = gradients_of(model, *batch(0))
    run(model, 1)
    for name in model.masked:
        seen = engine.to_numpy(spy.seen[spy._get_variable_index(model.variable(name))]).T
        np.testing.assert_allclose(seen, np.where(model.mask(name), truth[name], 0), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("interval", [1, 3])
def test_clipping_uses_the_sparse_models_norm(interval):
    """Also when an update is due and the dense gradient is needed."""
    model = made(
        spec_of(Dynamic(sparsity=0.9, interval=interval), Single()), optimizers.SGD(1.0, global_clipnorm=1e-3)
    )
    before, gradients, masks = weights_of(model), gradients_of(model, *batch(0)), masks_of(model)
    sparse = {name: np.where(masks.get(name, True), g, 0) for name, g in gradients.items()}
    norm = sum(float((g**2).sum()) for g in sparse.values()) ** 0.5
    model.train_on_batch(*batch(0))
    for name, after in weights_of(model).items():
        np.testing.assert_allclose(before[name] - after, sparse[name] * 1e-3 / norm, atol=1e-6)


def test_accumulated_micro_batches_choose_what_one_batch_chooses():
    spec, masks = spec_of(Dynamic(sparsity=0.8, interval=1), Single()), []
    for pieces in (1, 4):
        accumulation = pieces if pieces > 1 else None
        model = made(spec, optimizers.SGD(0.1, gradient_accumulation_steps=accumulation))
        topology = nt_keras.Topology(model, total_steps=50)
        for number in range(4):
            x, y = batch(number)
            for part in zip(np.split(x, pieces), np.split(y, pieces), strict=True):
                changed = (model.train_on_batch(*part), topology.step())[1]
            assert changed.step == topology.steps == number + 1
        masks.append(masks_of(model))
    assert_same(*masks)


def test_rigl_paper_update_replaces_the_optimizers_step():
    """In RigL's original code weights, biases and momentum stand still while the topology changes."""
    spec = PRESETS["rigl_paper"](GRAPH).replace(structure=Single())
    spec = spec.replace(topology=spec.topology.replace(interval=2))
    model = made(spec, optimizers.SGD(0.1, momentum=0.9, weight_decay=0.1))
    topology = nt_keras.Topology(model, total_steps=100)
    model.train_on_batch(*batch(0))
    assert topology.step() is None
    before, masks, slots = (
        weights_of(model),
        masks_of(model),
        {name: slots_of(model, name) for name in model.masked},
    )
    model.train_on_batch(*batch(1))
    assert topology.step() is not None
    for name, after in weights_of(model).items():
        stayed = masks[name] & model.mask(name) if name in masks else np.ones(after.shape, bool)
        np.testing.assert_array_equal(after[stayed], before[name][stayed], err_msg=name)
    for name in model.masked:
        assert (masks[name] != model.mask(name)).any() or masks[name].all()
        stayed = (masks[name] & model.mask(name)).T
        for old, new in zip(slots[name], slots_of(model, name), strict=True):
            np.testing.assert_array_equal(old[stayed], new[stayed])
    model.train_on_batch(*batch(2))
    assert not np.array_equal(
        weights_of(model)["head1/classifier/linear1.bias"], before["head1/classifier/linear1.bias"]
    )


@pytest.mark.parametrize("accumulation", [None, 2])
def test_skipped_steps_under_a_loss_scale_do_not_count_and_leave_nothing(accumulation):
    """An infinite gradient: the loss scale skips the call, the next call takes its place."""
    spec = spec_of(Dynamic(sparsity=0.8, interval=2), Single())
    runs = []
    for skips in (False, True):
        model = nt_keras.compile(spec)
        inner = nt_keras.sparse(
            optimizers.Adam(1e-2, gradient_accumulation_steps=accumulation, loss_scale_factor=3.0), model
        )
        scaled = optimizers.LossScaleOptimizer(inner, initial_scale=2.0**10)
        model.compile(optimizer=scaled, loss=nt_keras.ensemble_loss())
        topology = nt_keras.Topology(model, total_steps=100)
        updates = []
        for number in range(8):
            if skips and number in (1, 2, 5):
                x, y = batch(100)
                model.train_on_batch(x, y, sample_weight=np.full(8, np.inf, np.float32))
                assert topology.step() is None
            model.train_on_batch(*batch(number))
            updates.append(topology.step())
            assert_exactly_sparse(model)
        runs.append((topology.steps, [u and u.step for u in updates], weights_of(model), masks_of(model)))
    assert runs[0][:2] == runs[1][:2]
    assert_same(runs[0][3], runs[1][3])
    for name, values in runs[0][2].items():  # the scale was halved meanwhile, which may round
        np.testing.assert_allclose(values, runs[1][2][name], atol=1e-5)


def test_gradients_are_scored_unscaled():
    """|w| + λ|g| would otherwise depend on the loss scale."""
    topology = Dynamic(
        sparsity=0.5, interval=1, prune={"kind": "magnitude_and_gradient", "gradient_factor": 1.0}
    )
    masks = []
    for scale in (None, 2.0**12):
        model = nt_keras.compile(spec_of(topology, Single()))
        optimizer = nt_keras.sparse(optimizers.SGD(0.1), model)
        if scale is not None:
            optimizer = optimizers.LossScaleOptimizer(optimizer, initial_scale=scale)
        model.compile(optimizer=optimizer, loss=nt_keras.ensemble_loss())
        run(model, 3)
        masks.append(masks_of(model))
    assert_same(*masks)


def test_a_loss_scale_takes_over_from_the_wrapped_optimizers_own():
    steps = []
    for factor in (None, 8.0):
        model = nt_keras.compile(spec_of(Static(sparsity=0.5)))
        inner = nt_keras.sparse(optimizers.SGD(0.1, loss_scale_factor=factor), model)
        scaled = optimizers.LossScaleOptimizer(inner, initial_scale=4.0)
        model.compile(optimizer=scaled, loss=nt_keras.ensemble_loss())
        run(model, 1)
        steps.append(weights_of(model))
    assert_same(*steps)


def test_a_policy_of_ones_own():
    chosen = []
    inner = swap(prune=Magnitude(), grow=AtRandom())

    def mine(layer, count, moment):
        assert layer.gradients is not None
        chosen.append((layer.name, moment.step))
        return inner(layer, count, moment)

    spec = spec_of(Dynamic(sparsity=0.5, interval=1, grow="random"), Single())
    model = made(spec, optimizers.SGD(0.1), keep_gradients=True)
    run(model, 1, policy=mine)
    assert chosen == [(name, 1) for name in model.masked]
    assert_exactly_sparse(model)


def test_a_policy_that_does_not_keep_the_count_is_an_error():
    for pruned, grown in (([0], [1, 2]), ([0], [10**9]), ([0, 0], [1, 1]), ([0.5], [1.5])):
        change = Swap(pruned=np.array(pruned), grown=np.array(grown))
        model = fresh("sgd", Dynamic(sparsity=0.5, interval=1), 0)
        with pytest.raises(TopologyError, match="the policy must prune active positions"):
            run(model, 1, policy=lambda *_, change=change: change)


@pytest.mark.parametrize("grown_value", ["zero", "initial"])
def test_grown_weights_start_at_zero_or_from_the_initial_distribution(grown_value):
    topology = Dynamic(sparsity=0.5, interval=1, semantics=Semantics(grown_value=grown_value))
    model = fresh("sgd momentum decay", topology, 0)
    before = masks_of(model)
    run(model, 1)
    for name in model.masked:
        grown = model.array(name)[model.mask(name) & ~before[name]]
        assert (grown == 0).all() if grown_value == "zero" else (grown != 0).all()


@pytest.mark.parametrize(
    "preset", ["set", "rigl", "rigl_paper", "neurotrails", "neurotrails_lm", "gradual_pruning"]
)
def test_the_same_seed_gives_the_same_run_and_another_seed_another(preset):
    topology = PRESETS[preset](GRAPH).topology.replace(interval=1)
    runs = []
    for seed in (0, 0, 1):
        model = fresh("sgd momentum decay", topology, seed)
        run(model, 6, seed=seed)
        runs.append(weights_of(model) | {f"{name} mask": mask for name, mask in masks_of(model).items()})
    assert_same(runs[0], runs[1])
    assert not all(np.array_equal(runs[0][name], runs[2][name]) for name in runs[0])


def test_images_choose_what_the_canonical_layout_says():
    """A kernel lies transposed in Keras; policies see it as every backend does."""
    graph = nt_models.wide_resnet(depth=10, width=1, classes=10, size=8, channels=1)
    spec = spec_of(Dynamic(sparsity=0.8, interval=1, prune="random", grow="random"), graph=graph)
    model = made(spec, optimizers.SGD(0.1), keep_gradients=False)
    masks = {name: mask.ravel() for name, mask in masks_of(model).items()}
    topology = nt_keras.Topology(model, total_steps=10)
    model.train_on_batch(np.ones((2, 8, 8, 1), np.float32), np.array([1, 2]))
    topology.step()
    layers = [Layer(name=n, weights=m * 1.0, gradients=None, active=m) for n, m in masks.items()]
    chosen = update(
        spec.topology,
        layers,
        Moment(1, Random(0)),
        total_steps=10,
        targets=spec.topology.final_counts(spec.layout),
    )
    for name, mask in masks.items():
        mask = mask.copy()
        mask[chosen[name].pruned], mask[chosen[name].grown] = False, True
        np.testing.assert_array_equal(model.mask(name).ravel(), mask)
    assert_exactly_sparse(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_names_weight_and_step_and_changes_no_mask(value):
    model = fresh("sgd", Dynamic(sparsity=0.5, interval=2), 0)
    topology = nt_keras.Topology(model, total_steps=10)
    model.train_on_batch(*batch(0))
    topology.step()
    masks = masks_of(model)
    x, y = batch(1)
    model.train_on_batch(x, y, sample_weight=np.full(8, value, np.float32))
    with pytest.raises(
        TopologyError, match=r"weight '[^']+', step 2: (value|gradient) .* expected a finite number"
    ):
        topology.step()
    assert_same(masks, masks_of(model))


def test_a_gradient_alone_that_is_not_finite_is_an_error_too():
    topology = Dynamic(sparsity=0.5, interval=1, semantics=Semantics(optimizer_step="replaced"))
    model = fresh("sgd", topology, 0)
    tracker = nt_keras.Topology(model, total_steps=10)
    x, y = batch(1)
    weights, masks = weights_of(model), masks_of(model)
    model.train_on_batch(x, y, sample_weight=np.full(8, np.inf, np.float32))
    with pytest.raises(TopologyError, match=r"weight 'backbone/hidden1/linear1\.weight', step 1: gradient"):
        tracker.step()
    assert_same(masks, masks_of(model))
    assert_same(weights, weights_of(model))


@pytest.mark.parametrize("name", ["sgd momentum decay", "adam", "adagrad", "noisy"])
def test_weights_and_masks_that_somebody_else_set_are_followed(name):
    model = fresh(name, Dynamic(sparsity=0.8, interval=2), 0)
    run(model, 3)
    generator = np.random.default_rng(0)
    masks = {name: generator.random(mask.shape) < 0.3 for name, mask in masks_of(model).items()}
    dense = [
        masks_by_path(model, masks)[each.path] if each.dtype == "bool" else generator.normal(size=each.shape)
        for each in model.weights
    ]
    model.set_weights(dense)
    assert_same(masks_of(model), masks)
    assert_exactly_sparse(model)
    model.train_on_batch(*batch(9))
    assert_exactly_sparse(model)


def masks_by_path(model, masks):
    return {model.variable(name).mask.path: mask.T for name, mask in masks.items()}


def test_a_new_mask_is_followed_by_the_optimizer():
    from nt_core.masks import Mask

    model = fresh("adam", Static(sparsity=0.5), 0)
    run(model, 2)
    name = model.masked[1]
    mask = np.random.default_rng(0).random(model.mask(name).shape) < 0.3
    model.set_mask(name, Mask.from_dense(mask))
    np.testing.assert_array_equal(model.mask(name), mask)
    assert_exactly_sparse(model)
    model.train_on_batch(*batch(3))
    assert_exactly_sparse(model)


@pytest.mark.parametrize("frozen", ["backbone", "head1"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_frozen_layer_keeps_weights_and_masks(frozen, scope):
    spec = spec_of(Dynamic(sparsity=0.6, interval=1, drop_fraction=0.5, scope=scope))
    model = nt_keras.compile(spec)
    for layer in model.layers:
        layer.trainable = not layer.name.startswith(frozen)
    model.compile(optimizer=nt_keras.sparse("adam", model), loss=nt_keras.ensemble_loss())
    weights, masks = weights_of(model), masks_of(model)
    topology = run(model, 3, after=lambda model, changed: changed.grown)
    assert topology.density == pytest.approx(sum(spec.counts.values()) / sum(m.size for m in masks.values()))
    for name in model.masked:
        still = name.startswith(frozen)
        assert np.array_equal(weights[name], model.array(name)) == still
        assert np.array_equal(masks[name], model.mask(name)) == (still or masks[name].all())


def test_dense_gradients_are_kept_only_for_topologies_that_read_them():
    def held(topology, optimizer):
        model = made(spec_of(topology), optimizer)
        model.build_optimizer()
        sizes = [np.prod(v.shape) * np.dtype(v.dtype).itemsize for v in model.optimizer._variables]
        return sum(sizes), model

    counted = 16 + 8  # Keras' own scalars, and the step of the next update
    for topology in (
        Static(sparsity=0.5),
        Dynamic(sparsity=0.5, grow="random"),
        GradualPruning(sparsity=0.5),
    ):
        bytes_held, model = held(topology, "adam")
        maskable = sum(model.mask(name).size for name in model.masked)
        masks = sum(
            np.dtype(model.variable(name).mask.dtype).itemsize * model.mask(name).size
            for name in model.masked
        )
        assert masks == maskable
        assert bytes_held <= counted + (maskable if ENGINE == "jax" else 0)
    bytes_held, _ = held(Dynamic(sparsity=0.5), "adam")
    assert 4 * maskable <= bytes_held <= counted + 4 * maskable + (maskable if ENGINE == "jax" else 0)


@pytest.mark.parametrize("name", ["adam average", "noisy average accumulation"])
def test_averaged_weights_are_as_sparse(name):
    """``fit`` puts them in place when it ends."""
    model = fresh(name, Dynamic(sparsity=0.8, interval=2), 0)
    x, y = batch(0, 64)
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[nt_keras.TopologyUpdate(20)])
    assert_exactly_sparse(model)
    assert {name: int(mask.sum()) for name, mask in masks_of(model).items()} == dict(model.spec.counts)
