"""Sparse-topology training in somebody's own loop keeps its promises, whatever the loop does."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from own_topologies import test_a_topology_of_ones_own_trains  # noqa: F401
from topologies import topologies
from torch import nn

import nt_models
import nt_torch
from nt_core import (
    PRESETS,
    Dynamic,
    EnsembleSpec,
    GradualPruning,
    MultiHead,
    Semantics,
    Single,
    Static,
    TopologyError,
)
from nt_core.policies import GROWS, AtRandom, Gradient, Magnitude, swap
from nt_torch.network.model import unwrap

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "sgd nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=1e-2),
    "adam amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "radam": lambda p: torch.optim.RAdam(p, lr=1e-2),
    "adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, initial_accumulator_value=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.9, centered=True),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-2),
    "asgd": lambda p: torch.optim.ASGD(p, lr=1e-2),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "sgd foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "adam fused": lambda p: torch.optim.Adam(p, lr=1e-2, fused=True),
}
GRAPH = nt_models.mlp(inputs=6, hidden=(12, 8), classes=3)


class Noisy(torch.optim.SGD):
    """An optimiser that moves every weight, with elementwise state that is never zero."""

    elementwise_state = ("momentum_buffer", "anything")

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(torch.randn_like(parameter))
                self.state[parameter]["anything"] = torch.ones_like(parameter)


OPTIMIZERS["noisy"] = lambda p: Noisy(p, lr=0.1)


def spec_of(topology, structure=None, graph=GRAPH):
    return EnsembleSpec(graph=graph, structure=structure or MultiHead(split=1, heads=2), topology=topology)


def batch(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 6, generator=generator, dtype=dtype), torch.randint(3, (8,), generator=generator)


def backward(model, seed=0):
    x, y = batch(seed, next(model.parameters()).dtype)
    nt_torch.ensemble_loss(model(x), y).backward()


def run(spec, make, steps, *, after=lambda *_: None, total=20, seed=0, dtype=torch.float32):
    model = nt_torch.compile(spec, seed=seed, dtype=dtype)
    optimizer = make(model.parameters())
    topology = nt_torch.Topology(model, optimizer, total_steps=total, seed=seed)
    for number in range(steps):
        optimizer.zero_grad()
        backward(model, number)
        optimizer.step()
        changed = topology.step()
        after(model, optimizer, changed)
    return model, optimizer, topology


def assert_exactly_sparse(model, optimizer):
    """Inactive weights are 0 where they are stored, and so is their state, or it is what it is at birth."""
    births = {(torch.optim.Adagrad, "sum"): 0.1, (torch.optim.Rprop, "step_size"): 1e-2}
    for name in model.masked:
        inactive, weight = ~model.mask(name), model.stored(name)
        assert (weight[inactive] == 0).all(), name
        for key, value in optimizer.state[weight].items():
            if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                birth = torch.tensor(births.get((type(optimizer), key), 0.0))
                assert (value[inactive] == birth).all(), (name, key)


TOPOLOGIES = topologies(sparsest=0.99, grow=list(GROWS))


@pytest.mark.parametrize("name", OPTIMIZERS)
@settings(max_examples=8)
@given(topology=TOPOLOGIES, seed=st.integers(0, 100))
def test_counts_are_kept_and_inactive_weights_and_state_are_zero_after_every_step(name, topology, seed):
    torch.manual_seed(seed)
    spec = spec_of(topology)

    def check(model, optimizer, changed):
        assert_exactly_sparse(model, optimizer)
        assert {name: int(model.mask(name).sum()) for name in model.masked} == dict(spec.counts)
        if changed is not None:
            assert changed.pruned == changed.grown

    run(spec, OPTIMIZERS[name], 6, after=check, seed=seed)


@pytest.mark.parametrize("name", ["sgd momentum", "adam", "adam fused", "adagrad"])
def test_weights_and_state_that_somebody_else_wrote_are_masked_at_the_next_step(name):
    spec = spec_of(Static(sparsity=0.8))
    model, optimizer, topology = run(spec, OPTIMIZERS[name], 3)
    dense, dense_optimizer = copy.deepcopy(model), None
    dense_optimizer = OPTIMIZERS[name](dense.parameters())
    backward(dense)
    dense_optimizer.step()
    backward(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    optimizer.step()
    topology.step()
    assert_exactly_sparse(model, optimizer)
    optimizer.load_state_dict(dense_optimizer.state_dict())
    backward(model)
    optimizer.step()
    topology.step()
    assert_exactly_sparse(model, optimizer)


@given(seed=st.integers(0, 100), scope=st.sampled_from(["layer", "global"]))
@settings(max_examples=10)
def test_gradual_pruning_ends_at_the_exact_total(seed, scope):
    spec = spec_of(GradualPruning(sparsity=0.7, interval=2, scope=scope))
    totals = []

    def check(model, optimizer, _):
        assert_exactly_sparse(model, optimizer)
        totals.append(sum(int(model.mask(name).sum()) for name in model.masked))

    run(spec, OPTIMIZERS["sgd momentum"], 20, after=check, seed=seed)
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] == sum(spec.counts.values())


@pytest.mark.filterwarnings("ignore:optimizer .*LBFGS")  # whose history is not cleared
@pytest.mark.parametrize("name", [*OPTIMIZERS, "lbfgs"])
@pytest.mark.parametrize("update", ["taken", "replaced"])
def test_steps_with_a_closure_keep_the_promises_too(name, update):
    spec = spec_of(Dynamic(sparsity=0.8, interval=2, semantics=Semantics(optimizer_step=update)))
    make = OPTIMIZERS.get(name, lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3))
    results = []
    for closes in (True, False) if name not in {"lbfgs", "noisy"} else (True,):
        model = nt_torch.compile(spec)
        optimizer = make(model.parameters())
        topology = nt_torch.Topology(model, optimizer, total_steps=20)
        for number in range(5):

            def closure(model=model, optimizer=optimizer, number=number):
                optimizer.zero_grad()
                x, y = batch(number)
                loss = nt_torch.ensemble_loss(model(x), y)
                loss.backward()
                return loss

            if closes:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
            topology.step()
            assert_exactly_sparse(model, optimizer)
        assert topology.steps == 5
        results.append(model.state_dict())
    assert all(torch.equal(results[0][key], results[-1][key]) for key in results[0])


def test_a_closure_that_raises_leaves_the_loop_usable():
    model = nt_torch.compile(spec_of(Static(sparsity=0.8)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    topology = nt_torch.Topology(model, optimizer, total_steps=10)

    def broken():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(broken)
    backward(model)
    optimizer.step()
    topology.step()
    assert topology.steps == 1
    assert_exactly_sparse(model, optimizer)


def test_a_batch_that_the_caller_skips_leaves_nothing_of_its_gradient():
    masks = []
    for skips in (False, True):
        model = nt_torch.compile(spec_of(Dynamic(sparsity=0.8, interval=1), Single()))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        topology = nt_torch.Topology(model, optimizer, total_steps=20)
        for number in (0, 1) if skips else (1,):
            optimizer.zero_grad()
            backward(model, number)
            topology.mask_gradients()
            if number == 1:
                optimizer.step()
            topology.step()
        masks.append({name: model.mask(name).clone() for name in model.masked})
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


@pytest.mark.parametrize(
    "topology_choice",
    [
        Dynamic(sparsity=0.5, interval=1),
        Dynamic(sparsity=0.5, interval=1, semantics=Semantics(regrow="return")),
        Dynamic(sparsity=0.5, interval=1, prune={"kind": "magnitude_and_gradient", "gradient_factor": 100.0}),
    ],
    ids=["out", "return", "mest"],
)
def test_clipping_does_not_change_which_connections_move(topology_choice):
    masks = []
    for clips in (False, True):
        model = nt_torch.compile(spec_of(topology_choice.replace(prune=topology_choice.prune), Single()))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        topology = nt_torch.Topology(model, optimizer, total_steps=20)
        backward(model)
        if clips:
            topology.mask_gradients()
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
        topology.step()
        masks.append({name: model.mask(name).clone() for name in model.masked})
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


def test_weights_that_no_optimizer_trains_are_warned_of_and_stay():
    model = nt_torch.compile(spec_of(Dynamic(sparsity=0.5, interval=1)))
    part = torch.optim.SGD(model.backbone.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="4 of the model's 5 masked weights are in no optimiser"):
        topology = nt_torch.Topology(model, part, total_steps=10)
    before = copy.deepcopy(model.heads.state_dict())
    for number in range(2):
        backward(model, number)
        part.step()
        changed = topology.step()
        assert sum(changed.pruned.values()) > 0
    assert all(torch.equal(value, before[key]) for key, value in model.heads.state_dict().items())


def test_a_second_topology_takes_the_place_of_the_first():
    model = nt_torch.compile(spec_of(Static(sparsity=0.5)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = nt_torch.Topology(model, optimizer, total_steps=10)
    second = nt_torch.Topology(model, optimizer, total_steps=10)
    for number in range(2):
        optimizer.zero_grad()
        backward(model, number)
        optimizer.step()
        second.step()
    assert (first.steps, second.steps) == (0, 2)


def test_a_policy_that_does_not_keep_the_count_is_an_error():
    from nt_core.policies import Swap

    for pruned, grown in (([0], [1, 2]), ([0], [10**9]), ([0, 0], [1, 1]), ([0.5], [1.5])):
        model = nt_torch.compile(spec_of(Dynamic(sparsity=0.5, interval=1), Single()))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        change = Swap(pruned=np.array(pruned), grown=np.array(grown))
        topology = nt_torch.Topology(
            model, optimizer, total_steps=10, policy=lambda *_, change=change: change
        )
        backward(model)
        optimizer.step()
        with pytest.raises(TopologyError, match="the policy must prune active positions"):
            topology.step()


def test_global_scope_keeps_the_total():
    spec = spec_of(Dynamic(sparsity=0.6, scope="global", interval=1))

    def check(model, optimizer, _):
        assert_exactly_sparse(model, optimizer)
        assert sum(int(model.mask(name).sum()) for name in model.masked) == sum(spec.counts.values())

    run(spec, OPTIMIZERS["adam"], 10, after=check)


def test_the_masks_change_and_weights_grow_where_the_gradient_is_largest():
    spec = spec_of(Dynamic(sparsity=0.5, interval=1, drop_fraction=0.5), Single())
    model = nt_torch.compile(spec)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = nt_torch.Topology(model, optimizer, total_steps=100)
    backward(model)
    name = model.masked[0]
    gradient, before = model.array(name).grad.clone(), model.mask(name).clone()
    optimizer.step()
    changed = topology.step()
    after = model.mask(name)
    grown, passed_over = after & ~before, ~after & ~before
    assert int(grown.sum()) == changed.grown[name] > 0
    assert gradient[grown].abs().min() >= gradient[passed_over].abs().max()


def test_an_optimizer_sees_the_sparse_models_gradient():
    """Adafactor's row and column sums, LAMB's norms and the like mix inactive elements into active ones."""
    seen = []

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            seen.append({id(p): p.grad.clone() for g in self.param_groups for p in g["params"]})
            return super().step(closure)

    model, _, _ = run(spec_of(Static(sparsity=0.7)), lambda p: Spy(p, lr=0.1), 1)
    for name in model.masked:
        assert (seen[0][id(model.array(name))][~model.mask(name)] == 0).all()


@pytest.mark.parametrize("interval", [1, 3])
def test_clipping_uses_the_sparse_models_norm(interval):
    """Also when an update is due and the dense gradient is needed."""
    spec = spec_of(Dynamic(sparsity=0.9, interval=interval), Single())
    model = nt_torch.compile(spec)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = nt_torch.Topology(model, optimizer, total_steps=10)
    backward(model)
    squares = 0.0
    for name, parameter in ((p.name, model.array(p.name)) for p in spec.layout.weights):
        mask = model.mask(name)
        squares += float((parameter.grad if mask is None else parameter.grad * mask).pow(2).sum())
    topology.mask_gradients()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    assert float(norm) == pytest.approx(squares**0.5, rel=1e-6)
    optimizer.step()
    changed = topology.step()
    assert (changed is not None) == (interval == 1)
    assert_exactly_sparse(model, optimizer)


@pytest.mark.parametrize("masked_each_time", [False, True])
def test_accumulated_micro_batches_choose_what_one_batch_chooses(masked_each_time):
    spec = spec_of(Dynamic(sparsity=0.8, interval=1), Single())
    masks = []
    for pieces in (1, 4):
        model = nt_torch.compile(spec, dtype=torch.float64)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        topology = nt_torch.Topology(model, optimizer, total_steps=50)
        for number in range(5):
            x, y = batch(number, torch.float64)
            optimizer.zero_grad()
            for part_x, part_y in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
                (nt_torch.ensemble_loss(model(part_x), part_y) / pieces).backward()
                if masked_each_time:
                    topology.mask_gradients()
                assert topology.step() is None
            optimizer.step()
            assert topology.step() is not None
        masks.append({name: model.mask(name).clone() for name in model.masked})
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler_skipped_steps_do_not_count(fused):
    spec = spec_of(Dynamic(sparsity=0.8, interval=2), Single())
    model = nt_torch.compile(spec)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=fused)
    topology = nt_torch.Topology(model, optimizer, total_steps=100)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    updates = []
    for number in range(8):
        optimizer.zero_grad()
        x, y = batch(number)
        scaler.scale(nt_torch.ensemble_loss(model(x), y)).backward()
        if number % 3 == 1:
            model.array(model.masked[0]).grad[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        updates.append(topology.step() is not None)
        assert_exactly_sparse(model, optimizer)
    assert topology.steps == 5
    assert updates == [False, False, True, False, False, True, False, False]


@pytest.mark.parametrize("where", ["head1/hidden1/linear1.weight", "head1/hidden1/linear1.bias"])
@pytest.mark.parametrize("set_to_none", [False, True])
def test_a_skipped_step_leaves_nothing_of_its_gradient(set_to_none, where):
    """With clipping, the dense gradient was kept before GradScaler decided to skip the step."""
    spec = spec_of(Dynamic(sparsity=0.8, interval=1), Single())
    masks = []
    for skips in (False, True):
        model = nt_torch.compile(spec)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        topology = nt_torch.Topology(model, optimizer, total_steps=100)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for number in (0, 1) if skips else (1,):
            optimizer.zero_grad(set_to_none=set_to_none)
            x, y = batch(number)
            scaler.scale(nt_torch.ensemble_loss(model(x), y)).backward()
            if number == 0:
                model.array(where).grad.fill_(float("inf"))
            scaler.unscale_(optimizer)
            topology.mask_gradients()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            topology.step()
        assert topology.steps == 1
        masks.append({name: model.mask(name).clone() for name in model.masked})
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


def test_gradients_are_scored_unscaled_under_a_fused_optimizer():
    """|w| + λ|g| would otherwise depend on the loss scale."""
    topology_choice = Dynamic(sparsity=0.5, interval=1, prune="magnitude_and_gradient")
    masks = []
    for scale in (1.0, 2.0**12):
        model = nt_torch.compile(spec_of(topology_choice, Single()))
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        topology = nt_torch.Topology(model, optimizer, total_steps=100)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        x, y = batch(0)
        scaler.scale(nt_torch.ensemble_loss(model(x), y)).backward()
        scaler.step(optimizer)
        topology.step()
        masks.append({name: model.mask(name).clone() for name in model.masked})
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


def test_zero_grad_before_the_topology_step_changes_nothing():
    spec = spec_of(Dynamic(sparsity=0.8, interval=1), Single())
    masks = []
    for early in (False, True):
        model = nt_torch.compile(spec)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        topology = nt_torch.Topology(model, optimizer, total_steps=50)
        backward(model)
        optimizer.step()
        if early:
            optimizer.zero_grad()
        topology.step()
        masks.append(model.mask(model.masked[0]).clone())
    assert torch.equal(*masks)


def test_rigl_paper_update_replaces_the_optimizers_step():
    """In RigL's original code weights, biases and momentum stand still while the topology changes."""
    spec = PRESETS["rigl_paper"](GRAPH).replace(structure=Single())
    spec = spec.replace(topology=spec.topology.replace(interval=2))
    model = nt_torch.compile(spec)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    topology = nt_torch.Topology(model, optimizer, total_steps=100)
    backward(model)
    optimizer.step()
    assert topology.step() is None
    before, momenta = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    backward(model, 1)
    optimizer.step()
    assert topology.step() is not None
    for name in model.masked:
        stayed = before_mask = before[_key(model, name, "_mask")]
        stayed = before_mask & model.mask(name)
        assert torch.equal(model.array(name)[stayed], before[_key(model, name)][stayed])
        assert not torch.equal(before_mask, model.mask(name)) or before_mask.all()
    for placed in spec.layout.weights:
        if model.mask(placed.name) is None:
            assert torch.equal(model.array(placed.name), before[_key(model, placed.name)])
    after = optimizer.state_dict()["state"]
    for number, state in momenta.items():
        still = after[number]["momentum_buffer"] != 0
        assert torch.equal(after[number]["momentum_buffer"][still], state["momentum_buffer"][still])


def _key(model, name, suffix=""):
    wanted = model.array(name)
    return next(key for key, value in model.named_parameters() if value is wanted) + suffix


def test_a_step_before_the_optimizers_or_after_it_both_keep_the_masks():
    spec = spec_of(Dynamic(sparsity=0.8, interval=1), Single())
    model = nt_torch.compile(spec)
    optimizer = torch.optim.Adam(model.parameters())
    topology = nt_torch.Topology(model, optimizer, total_steps=50)
    for number in range(5):
        optimizer.zero_grad()
        backward(model, number)
        topology.step()
        optimizer.step()
        assert_exactly_sparse(model, optimizer)
    assert topology.steps == 5


def test_forgetting_the_topology_step_is_an_error():
    model = nt_torch.compile(spec_of(Static(sparsity=0.5)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _ = nt_torch.Topology(model, optimizer, total_steps=10)
    backward(model)
    optimizer.step()
    with pytest.raises(TopologyError, match=r"step 2.*topology\.step\(\) was not called after step 1"):
        optimizer.step()


@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_names_weight_and_step_and_changes_no_mask(value, clips):
    spec = spec_of(Dynamic(sparsity=0.5, interval=2))
    model = nt_torch.compile(spec)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = nt_torch.Topology(model, optimizer, total_steps=10)
    backward(model)
    optimizer.step()
    topology.step()
    backward(model, 1)
    name = model.masked[-1]
    position = int((~model.mask(name)).reshape(-1).nonzero()[0])
    model.array(name).grad.view(-1)[position] = value
    before = copy.deepcopy(model.state_dict())
    state = copy.deepcopy(optimizer.state_dict())
    if clips:
        topology.mask_gradients()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    with pytest.raises(TopologyError, match=f"weight '{name}', step 2: gradient .*position {position}"):
        optimizer.step()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert optimizer.state_dict() == state
    optimizer.zero_grad()
    backward(model, 2)
    optimizer.step()
    assert topology.step().step == 2


def test_an_optimizer_of_another_model_is_an_error():
    model = nt_torch.compile(spec_of(Static(sparsity=0.5)))
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(TopologyError, match="masked weights are not in it"):
        nt_torch.Topology(model, other, total_steps=10)


def test_not_an_optimizer_is_an_error():
    model = nt_torch.compile(spec_of(Static(sparsity=0.5)))
    with pytest.raises(TopologyError, match=r"expected a torch\.optim\.Optimizer"):
        nt_torch.Topology(model, object(), total_steps=10)


def test_a_policy_of_ones_own():
    chosen = []
    inner = swap(prune=Magnitude(), grow=AtRandom())

    def mine(layer, count, moment):
        chosen.append((layer.name, moment.step))
        return inner(layer, count, moment)

    spec = spec_of(Dynamic(sparsity=0.5, interval=1), Single())
    model = nt_torch.compile(spec)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = nt_torch.Topology(model, optimizer, total_steps=10, policy=mine)
    backward(model)
    optimizer.step()
    topology.step()
    assert chosen == [(name, 1) for name in model.masked]
    assert_exactly_sparse(model, optimizer)


def test_grown_weights_start_at_zero_or_from_the_initial_distribution():
    for grown_value in ("zero", "initial"):
        topology = Dynamic(sparsity=0.5, interval=1, semantics=Semantics(grown_value=grown_value))
        spec = spec_of(topology, Single())
        model = nt_torch.compile(spec)
        before = {name: model.mask(name).clone() for name in model.masked}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        tracker = nt_torch.Topology(model, optimizer, total_steps=10)
        backward(model)
        optimizer.step()
        tracker.step()
        for name in model.masked:
            grown = model.array(name)[model.mask(name) & ~before[name]]
            assert (grown == 0).all() if grown_value == "zero" else (grown != 0).all()


@pytest.mark.parametrize(
    "preset", ["set", "rigl", "rigl_paper", "neurotrails", "neurotrails_lm", "gradual_pruning"]
)
def test_the_same_seed_gives_the_same_run_and_another_seed_another(preset):
    spec = PRESETS[preset](GRAPH)
    spec = spec.replace(topology=spec.topology.replace(interval=1))
    first, second, other = (
        run(spec, OPTIMIZERS["sgd momentum"], 6, seed=seed)[0].state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_channels_last_chooses_the_same():
    graph = nt_models.wide_resnet(depth=10, width=1, classes=10, size=8, channels=1)
    spec = spec_of(Dynamic(sparsity=0.8, interval=1, prune="random", grow=Gradient()), graph=graph)
    ensembles = [nt_torch.compile(spec, dtype=torch.float64) for _ in range(2)]
    ensembles[1].to(memory_format=torch.channels_last)
    for model in ensembles:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        topology = nt_torch.Topology(model, optimizer, total_steps=10)
        for number in range(3):
            optimizer.zero_grad()
            generator = torch.Generator().manual_seed(number)
            x = torch.randn(4, 1, 8, 8, generator=generator, dtype=torch.float64)
            nt_torch.ensemble_loss(model(x), torch.arange(4)).backward()
            optimizer.step()
            topology.step()
            assert_exactly_sparse(model, optimizer)
    assert all(torch.equal(ensembles[0].mask(n), ensembles[1].mask(n)) for n in ensembles[0].masked)


def test_masks_and_state_cost_at_most_a_byte_per_weight():
    """Beyond what the dense model and its optimiser hold."""
    graph = nt_models.mlp(inputs=256, hidden=(512, 512), classes=10)

    def held(topology_choice):
        spec = EnsembleSpec(graph=graph, topology=topology_choice)
        model = nt_torch.compile(spec)
        optimizer = torch.optim.Adam(model.parameters())
        topology = nt_torch.Topology(model, optimizer, total_steps=10)
        nt_torch.ensemble_loss(model(torch.randn(4, 256)), torch.arange(4)).backward()
        optimizer.step()
        topology.step()
        tensors = [*model.parameters(), *model.buffers()]
        tensors += [p.grad for p in model.parameters() if p.grad is not None]
        tensors += [v for s in optimizer.state.values() for v in s.values()]
        tensors += [v for v in vars(topology).values() if isinstance(v, torch.Tensor)]
        assert not len(topology._gradients)
        return sum(t.numel() * t.element_size() for t in tensors)

    weights = sum(EnsembleSpec(graph=graph).counts.values())
    assert held(Dynamic(sparsity=0.8, interval=1)) - held(PRESETS["single"](graph).topology) <= weights


def test_state_goes_on_where_it_was():
    spec = spec_of(Dynamic(sparsity=0.8, interval=2), Single())
    whole, _, _ = run(spec, OPTIMIZERS["adam"], 6)
    half, optimizer, topology = run(spec, OPTIMIZERS["adam"], 3)
    states = copy.deepcopy((half.state_dict(), optimizer.state_dict(), topology.state_dict()))
    resumed = nt_torch.compile(spec, seed=9)
    resumed.load_state_dict(states[0])
    optimizer = OPTIMIZERS["adam"](resumed.parameters())
    optimizer.load_state_dict(states[1])
    topology = nt_torch.Topology(resumed, optimizer, total_steps=20)
    topology.load_state_dict(states[2])
    for number in range(3, 6):
        optimizer.zero_grad()
        backward(resumed, number)
        optimizer.step()
        topology.step()
    ours, theirs = resumed.state_dict(), whole.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_wrapped_by_torch_compile_and_data_parallel():
    model = nt_torch.compile(spec_of(Static(sparsity=0.5)))
    wrapped = nn.DataParallel(torch.compile(model, backend="eager"))
    assert unwrap(wrapped) is model
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    topology = nt_torch.Topology(wrapped, optimizer, total_steps=10)
    backward(wrapped)
    optimizer.step()
    topology.step()
    assert_exactly_sparse(model, optimizer)


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 1000),
    last=st.booleans(),
)
def test_remask_clears_everything_inactive_and_nothing_else(shape, dtype, seed, last):
    from nt_torch.network.remask import remask_

    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator).to(dtype)
    active = torch.rand(shape, generator=generator) < 0.5
    poison = torch.tensor([float("nan"), float("inf"), -0.0])[torch.randint(3, shape, generator=generator)]
    tensor = torch.where(active, values, poison.to(dtype))
    if last and len(shape) == 4:
        tensor, active = tensor.to(memory_format=torch.channels_last), active.clone()
    remask_(tensor, active)
    assert torch.equal(tensor[active], values[active])
    assert (np.signbit(tensor[~active].float().numpy()) == 0).all()
    assert (tensor[~active] == 0).all()
