"""Somebody's own loop: optimisers inside others, several of them, closures, averages, frozen parts."""

import copy
import dataclasses
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import nt_models
import nt_torch
from nt_core import PRESETS, Dynamic, EnsembleSpec, MultiHead, Static, TopologyError
from nt_core.checkpoint import save_checkpoint
from nt_core.errors import CheckpointError
from nt_core.policies import GROWS

GRAPH = nt_models.mlp(inputs=6, hidden=(12, 8), classes=3)
DYNAMIC = Dynamic(sparsity=0.8, interval=2)


def spec_of(topology=DYNAMIC):
    return EnsembleSpec(graph=GRAPH, structure=MultiHead(split=1, heads=2), topology=topology)


def batch(number):
    generator = torch.Generator().manual_seed(number)
    return torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator)


def backward(model, number):
    x, y = batch(number)
    loss = model.loss(x, y)
    loss.backward()
    return loss


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def plain(model, optimizer, number, topology):
    optimizer.zero_grad()
    backward(model, number)
    optimizer.step()


def train(step=plain, make=sgd, *, spec=None, steps=6, follow=lambda optimizer: optimizer):
    model = nt_torch.compile(spec or spec_of(), seed=0)
    optimizer = make(model)
    topology = nt_torch.Topology(model, follow(optimizer), total_steps=20)
    for number in range(steps):
        step(model, optimizer, number, topology)
        topology.step()
    return model, optimizer, topology


def expect_sparse(model):
    for name in model.masked:
        assert not model.stored(name)[~model.mask(name)].any(), name
    counts = {name: int(model.mask(name).sum()) for name in model.masked}
    assert counts == dict(model.spec.counts)


def expect_equal(a, b):
    theirs = b.state_dict()
    for key, value in a.state_dict().items():
        torch.testing.assert_close(value, theirs[key], rtol=0, atol=0, msg=key)


# Gradients that are clipped.


def clip_in_a_closure(model, optimizer, number, topology):
    def closure():
        optimizer.zero_grad()
        loss = backward(model, number)
        topology.mask_gradients()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        return loss

    optimizer.step(closure)


def clip_outside(model, optimizer, number, topology):
    optimizer.zero_grad()
    backward(model, number)
    topology.mask_gradients()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()


def clip_into_new_tensors(model, optimizer, number, topology):
    optimizer.zero_grad()
    backward(model, number)
    topology.mask_gradients()
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters()])
    for parameter in model.parameters():
        parameter.grad = parameter.grad * torch.clamp(0.1 / (norm + 1e-6), max=1.0)
    optimizer.step()


@pytest.mark.parametrize("step", [clip_in_a_closure, clip_into_new_tensors])
def test_growth_reads_the_gradient_from_before_it_was_clipped(step):
    expect_equal(train(step)[0], train(clip_outside)[0])


def test_a_clipped_closure_that_is_called_twice_reads_its_last_gradient():
    def twice(model, optimizer, number, topology):
        def closure(number=number):
            optimizer.zero_grad()
            loss = backward(model, number)
            topology.mask_gradients()
            return loss

        class Twice(torch.optim.SGD):
            pass

        optimizer.step(lambda: (closure(number + 100), closure())[1])

    expect_equal(train(twice)[0], train()[0])


# Optimisers inside others, and several of them.


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation in its usual form, by a closure or by two calls."""

    def __init__(self, params, base, rho=0.05, **settings):
        super().__init__(params, {"rho": rho, **settings})
        self.base_optimizer = base(self.param_groups, **settings)
        self.param_groups = self.base_optimizer.param_groups

    def weights(self):
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]

    @torch.no_grad()
    def first_step(self):
        norm = torch.stack([p.grad.norm() for p in self.weights()]).norm()
        for p in self.weights():
            self.state[p]["old"] = p.clone()
            p.add_(p.grad * self.param_groups[0]["rho"] / norm)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for p in self.weights():
            p.copy_(self.state[p]["old"])
        self.base_optimizer.step()
        self.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        closure = torch.enable_grad()(closure)
        closure()
        self.first_step()
        closure()
        self.second_step()


def sam(model):
    return SAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)


def sam_by_closure(model, optimizer, number, topology):
    optimizer.zero_grad()
    optimizer.step(lambda: backward(model, number))


def sam_by_two_calls(model, optimizer, number, topology):
    optimizer.zero_grad()
    backward(model, number)
    topology.mask_gradients()
    optimizer.first_step()
    backward(model, number)
    optimizer.second_step()


@pytest.mark.filterwarnings("ignore:optimizer .*SAM")
def test_sharpness_aware_steps_are_counted_by_closure_and_by_two_calls():
    closed, _, counted = train(sam_by_closure, sam)
    called, _, topology = train(sam_by_two_calls, sam)
    assert counted.steps == topology.steps == 6
    expect_sparse(closed)
    for name in closed.masked:
        assert torch.equal(closed.mask(name), called.mask(name))
        torch.testing.assert_close(closed.array(name), called.array(name))


def test_steps_of_an_optimizer_that_topology_was_not_given_are_noticed():
    def step(model, optimizer, number, topology):
        optimizer.zero_grad()
        backward(model, number)
        torch.optim.SGD(model.parameters(), lr=0.1).step()

    with pytest.raises(TopologyError, match=r"weights changed without a counted step: 'backbone"):
        train(step)


def test_one_change_without_a_step_is_no_step():
    model, optimizer, topology = train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    assert topology.step() is None
    optimizer.zero_grad()
    backward(model, 9)
    optimizer.step()
    topology.step()
    assert topology.steps == 7
    expect_sparse(model)


class Halves(torch.optim.Optimizer):
    """Two optimisers in one, which takes no step of its own."""

    def __init__(self, *inner):
        super().__init__([p for each in inner for g in each.param_groups for p in g["params"]], {})
        self.inner = list(inner)

    def step(self, closure=None):
        for each in self.inner:
            each.step()


def halves(model):
    parameters = list(model.parameters())
    return [torch.optim.SGD(part, lr=0.1, momentum=0.9) for part in (parameters[::2], parameters[1::2])]


def step_all(model, optimizers, number, topology):
    for each in optimizers:
        each.zero_grad()
    backward(model, number)
    for each in optimizers:
        each.step()


@pytest.mark.parametrize("grow", list(GROWS))
def test_two_optimizers_do_what_one_does(grow):
    spec = spec_of(Dynamic(sparsity=0.8, interval=2, grow=grow))
    one, _, _ = train(spec=spec)
    two, _, topology = train(step_all, halves, spec=spec)
    assert topology.steps == 6
    expect_equal(one, two)
    inside, _, topology = train(make=lambda model: Halves(*halves(model)), spec=spec)
    assert topology.steps == 6
    expect_equal(one, inside)


def test_muon_for_matrices_and_adamw_for_the_rest():
    def make(model):
        matrices = [p for p in model.parameters() if p.ndim == 2]
        rest = [p for p in model.parameters() if p.ndim != 2]
        return [torch.optim.Muon(matrices), torch.optim.AdamW(rest)]

    model, _, topology = train(step_all, make)
    assert topology.steps == 6
    assert topology.optimizer is topology.optimizers[0]
    expect_sparse(model)


@pytest.mark.filterwarnings("ignore")  # of torch.compile
def test_a_compiled_step():
    def make(model):
        optimizer = sgd(model)
        return optimizer

    def step(model, optimizer, number, topology):
        if not hasattr(topology, "compiled"):
            topology.compiled = torch.compile(optimizer.step, backend="eager")
        optimizer.zero_grad()
        backward(model, number)
        topology.compiled()

    model, _, topology = train(step, make, steps=3)
    assert topology.steps == 3
    expect_equal(model, train(steps=3)[0])


def test_a_hook_after_ours_that_writes_to_weights():
    def make(model):
        optimizer = sgd(model)
        return optimizer

    def step(model, optimizer, number, topology):
        if number == 0:
            optimizer.register_step_post_hook(write)
        plain(model, optimizer, number, topology)

    @torch.no_grad()
    def write(optimizer, *_):
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.add_(1e-3)

    model, _, _ = train(step, make)
    expect_sparse(model)


# State of optimisers.


class Rotated(torch.optim.Adam):
    """A subclass that keeps Adam's moments in another basis."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim == 2:
                    p.grad = p.grad.flip(0)
        super().step(closure)


class Momentum(torch.optim.Optimizer):
    """An optimiser of somebody's own."""

    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("inner", {"m_0": torch.zeros_like(p)})["m_0"]
                p.sub_(0.1 * buffer.mul_(0.9).add_(p.grad))


class Declared(Momentum):
    """The same, which says what it keeps."""

    elementwise_state = ("m",)


def test_state_of_unknown_optimizers_is_left_alone_and_named_once():
    with pytest.warns(UserWarning, match=r"Momentum: its state m is not cleared.*elementwise_state") as said:
        model, optimizer, _ = train(make=lambda model: Momentum(model.parameters()))
    assert len(said) == 1
    name = model.masked[0]
    kept = optimizer.state[model.array(name)]["inner"]["m_0"]
    assert kept[~model.mask(name)].any()
    expect_sparse(model)


def test_state_that_an_optimizer_declares_is_cleared_however_it_is_nested():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, optimizer, _ = train(make=lambda model: Declared(model.parameters()))
    for name in model.masked:
        assert not optimizer.state[model.array(name)]["inner"]["m_0"][~model.mask(name)].any()


def test_a_subclass_that_keeps_its_state_in_another_basis_is_found_out():
    with pytest.warns(UserWarning, match=r"Rotated: its state exp_avg, exp_avg_sq is not cleared"):
        model, optimizer, _ = train(make=lambda model: Rotated(model.parameters()))
    assert any(
        optimizer.state[model.array(name)]["exp_avg"][~model.mask(name)].any() for name in model.masked
    )


def test_grown_weights_get_the_step_size_that_rprop_starts_with():
    model, optimizer, _ = train(make=lambda model: torch.optim.Rprop(model.parameters(), lr=0.02), steps=2)
    for name in model.masked:
        assert (optimizer.state[model.array(name)]["step_size"][~model.mask(name)] == 0.02).all()


def test_adam_without_eps_stays_finite():
    spec = spec_of(Static(sparsity=0.8))
    model, optimizer, _ = train(make=lambda model: torch.optim.Adam(model.parameters(), eps=0.0), spec=spec)
    expect_sparse(model)
    for name in model.masked:
        state = optimizer.state[model.array(name)]
        assert not state["exp_avg"][~model.mask(name)].any()


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
        lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3, line_search_fn="strong_wolfe"),
    ],
)
def test_lbfgs_moves_active_weights_alone(make):
    spec = spec_of(Static(sparsity=0.8))
    model, _, topology = train(
        lambda m, o, n, t: o.step(closure_of(m, o, n)), lambda m: make(m.parameters()), spec=spec, steps=3
    )
    expect_sparse(model)
    assert topology.steps == 3


def test_lbfgs_names_its_history_which_is_flat_over_all_weights():
    with pytest.warns(UserWarning, match=r"LBFGS: its state .*old_dirs.* is not cleared"):
        model, _, _ = train(
            lambda m, o, n, t: o.step(closure_of(m, o, n)),
            lambda m: torch.optim.LBFGS(m.parameters(), lr=0.1, max_iter=3),
        )
    expect_sparse(model)


def closure_of(model, optimizer, number):
    def closure():
        optimizer.zero_grad()
        return backward(model, number)

    return closure


# Frozen parts.


@pytest.mark.parametrize("grow", list(GROWS))
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_frozen_backbone_keeps_values_and_masks(grow, scope):
    spec = spec_of(Dynamic(sparsity=0.8, interval=2, grow=grow, scope=scope))
    start = nt_torch.compile(spec, seed=0).backbone.state_dict()

    def make(model):
        model.backbone.requires_grad_(False)
        return sgd(model)

    model, _, _ = train(make=make, spec=spec)
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, start[key])
    other = train(spec=spec, steps=0)[0]
    assert any(not torch.equal(model.mask(n), other.mask(n)) for n in model.masked if n.startswith("head"))
    assert sum(int(model.mask(name).sum()) for name in model.masked) == sum(spec.counts.values())


@pytest.mark.parametrize("preset", ["snfs", "mest", "gradual_pruning", "deep_r"])
def test_presets_pass_over_frozen_parts(preset):
    spec = PRESETS[preset](GRAPH).replace(structure=MultiHead(split=1, heads=2))
    spec = spec.replace(topology=spec.topology.replace(interval=2))

    def make(model):
        model.backbone.requires_grad_(False)
        return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)

    start = nt_torch.compile(spec, seed=0).backbone.state_dict()
    model, _, _ = train(make=make, spec=spec)
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, start[key])


# Averages.


@pytest.mark.parametrize("buffers", [False, True])
def test_averages_of_weights_are_as_sparse_as_the_model(buffers):
    model, optimizer, topology = train(steps=0)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=buffers)
    expected = {name: model.array(name).detach().clone() for name in model.masked}
    for number in range(5):
        plain(model, optimizer, number, topology)
        topology.step()
        average.update_parameters(model)
        topology.average(average)
        for name, value in expected.items():
            mean = value * 0.9 + model.array(name) * 0.1 if number else model.array(name)
            expected[name] = mean.detach() * model.mask(name)
    for name in model.masked:
        assert torch.equal(average.module.mask(name), model.mask(name))
        torch.testing.assert_close(average.module.array(name), expected[name])
    expect_sparse(average.module)
    with pytest.raises(TopologyError, match="another spec"):
        topology.average(nt_torch.compile(spec_of(Static(sparsity=0.5))))


def test_an_average_follows_connections_that_move_between_weights():
    """Each weight's count changes, and their sum does not, so no single mask may be held to its old count."""
    spec = PRESETS["snfs"](GRAPH).replace(structure=MultiHead(split=1, heads=2))
    spec = spec.replace(topology=spec.topology.replace(interval=1))
    model, optimizer, topology = train(spec=spec, steps=0)
    average = AveragedModel(model)
    before = {name: int(model.mask(name).sum()) for name in model.masked}
    for number in range(4):
        plain(model, optimizer, number, topology)
        topology.step()
        average.update_parameters(model)
        topology.average(average)
        assert all(torch.equal(average.module.mask(name), model.mask(name)) for name in model.masked)
    assert before != {name: int(model.mask(name).sum()) for name in model.masked}


def test_masks_that_were_averaged_into_their_union_are_cut_and_said():
    model, optimizer, topology = train(steps=0)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for number in range(5):
        plain(model, optimizer, number, topology)
        topology.step()
        average.update_parameters(model)
    with pytest.warns(UserWarning, match="masks were averaged into their union"):
        average.module(torch.zeros(1, 6))
    expect_sparse(average.module)


def test_a_checkpoint_denser_than_its_spec_is_refused(tmp_path):
    model = nt_torch.compile(spec_of(Static(sparsity=0.8)))
    saved = nt_torch.checkpoint(model)
    name = model.masked[0]
    full = type(saved.masks[name]).from_dense(saved.masks[name].dense() | True)
    with pytest.raises(CheckpointError, match=rf"{name}.*active"):
        save_checkpoint(tmp_path, dataclasses.replace(saved, masks={**saved.masks, name: full}))


def test_whatever_writes_to_weights_the_model_computes_sparsely():
    model = nt_torch.compile(spec_of(Static(sparsity=0.8)), seed=0)
    x, _ = batch(0)
    vector = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(vector + 0.5, model.parameters())
    model(x)
    expect_sparse(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    backward(model, 0)
    optimizer.step()
    assert not model.array(model.masked[0])[~model.mask(model.masked[0])].any()


# States, copies, errors.


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("total_steps", {"total_steps": 30}),
        ("seed", {"seed": 1}),
        ("escapes", {"escapes": {4: 0.5}}),
    ],
)
def test_a_state_of_another_training_is_refused_by_field(field, other):
    _, _, topology = train()
    model = nt_torch.compile(spec_of())
    resumed = nt_torch.Topology(model, sgd(model), **{"total_steps": 20, **other})
    with pytest.raises(TopologyError, match=rf"state\.{field}.*: expected"):
        resumed.load_state_dict(topology.state_dict())


def test_a_state_of_another_topology_names_what_differs():
    _, _, topology = train()
    model = nt_torch.compile(spec_of(DYNAMIC.replace(interval=3)))
    resumed = nt_torch.Topology(model, sgd(model), total_steps=20)
    with pytest.raises(TopologyError, match=r"state\.topology\.interval: expected 3, .* found 2"):
        resumed.load_state_dict(topology.state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copy_of_model_optimizer_and_topology_goes_on_by_itself(copied):
    whole, _, _ = train(steps=6)
    model, optimizer, topology = copied(train(steps=3))
    for number in range(3, 6):
        plain(model, optimizer, number, topology)
        topology.step()
    assert topology.steps == 6
    expect_equal(model, whole)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_inside_an_optimizers_step_leaves_the_loop_usable(error):
    class Fails(torch.optim.SGD):
        fails = False

        def step(self, closure=None):
            super().step(closure)
            if self.fails:
                raise error("in the middle")

    model, optimizer, topology = train(make=lambda m: Fails(m.parameters(), lr=0.1), steps=3)
    optimizer.fails = True
    backward(model, 3)
    with pytest.raises(error):
        optimizer.step()
    optimizer.fails = False
    plain(model, optimizer, 4, topology)
    topology.step()
    assert topology.steps == 4
    expect_sparse(model)


@pytest.mark.filterwarnings("ignore:.*autocast")
def test_a_loop_inside_one_autocast_block_sees_new_weights():
    model, optimizer, topology = train(steps=0, spec=spec_of(Static(sparsity=0.8)))
    x, _ = batch(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain(model, optimizer, 0, topology)
        topology.step()
        inside = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(inside, model(x))
