"""The PyTorch backend gives the NumPy reference's numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nt_core import Independent, MultiHead, Random, Single
from nt_core.graph import ops
from nt_core.graph.ops import OPS
from nt_core.policies import Layer
from nt_core.testing import CHECKS, Case, check_dropout, check_update, model_cases, op_cases, update_cases
from nt_core.testing.models import inverted_residuals
from nt_models.tiny import TINY
from nt_torch.network.batched import BATCHED
from nt_torch.network.execution import Execution, why_not_batched
from nt_torch.network.lowering import LOWERINGS
from nt_torch.network.model import Ensemble, as_numpy
from nt_torch.topology.arrays import TorchArrays, threefry2x32
from nt_torch.topology.topology import Topology

CASES = [*op_cases(), *model_cases({name: make() for name, make in TINY.items()})]
DEEP = [
    Case(name=f"deep_{type(s).__name__}", graph=inverted_residuals(), structure=s, kind="model", batch=4)
    for s in (Single(), MultiHead(split=6, heads=2))
]


class TorchBackend:
    def __init__(self, **execution):
        self.execution = Execution(**execution)

    def build(self, case, values):
        model = Ensemble(case.spec)
        model.execution = self.execution
        kinds = {v.dtype for v in values.values()}
        model = model.to(torch.float64 if kinds == {np.dtype(np.float64)} else torch.float32)
        with torch.no_grad():
            for name, value in values.items():
                model.array(name).copy_(torch.from_numpy(value))
        return model

    def forward(self, case, values, x, *, training):
        model = self.build(case, values).train(training)
        return as_numpy(model(torch.from_numpy(x)))

    def gradients(self, case, values, x, upstream):
        model = self.build(case, values)
        (model(torch.from_numpy(x)) * torch.from_numpy(upstream)).sum().backward()
        trainable = [p.name for p in case.layout.weights if p.weight.trainable]
        return {name: as_numpy(model.array(name).grad) for name in trainable}

    def running(self, case, values, x):
        model = self.build(case, values)
        model(torch.from_numpy(x))
        names = [p.name for p in case.layout.weights if not p.weight.trainable]
        return {name: as_numpy(model.array(name)) for name in names}

    def step(self, case, values, masks, x, upstream, *, learning_rate):
        model = self.build(case, values)
        for name, mask in masks.items():
            model.set_mask(name, mask)
        logits = model(torch.from_numpy(x))
        if values:
            optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
            topology = Topology(model, optimizer, total_steps=10)
            (logits * torch.from_numpy(upstream)).sum().backward()
            optimizer.step()
            topology.step()
        return {p.name: as_numpy(model.array(p.name)) for p in case.layout.weights}


def test_every_op_has_a_lowering():
    assert set(LOWERINGS) == set(OPS)
    assert set(BATCHED) == set(OPS)


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", [*CASES, *DEEP], ids=str)
def test_conforms_to_the_reference(case, check, dtype):
    check(TorchBackend(), case, dtype)


HEADS = [
    *[replace(case, structure=Independent(count=2)) for case in op_cases()],
    *[case for case in CASES if case.kind == "model" and why_not_batched(case.layout) is None],
]
"""Each op on weights of two heads, and every model with heads that are alike."""


@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", HEADS, ids=str)
def test_batched_heads_conform_to_the_reference(case, check, recompute):
    backend = TorchBackend(heads="batched", activation_checkpointing=recompute)
    check(backend, case, np.float32 if recompute and case.kind == "model" else np.float64)


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
def test_dropout(dtype):
    torch.manual_seed(0)
    check_dropout(TorchBackend(), dtype)


VALUES = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])


@st.composite
def layers(draw):
    made = []
    for number in range(draw(st.integers(1, 3))):
        size = draw(st.integers(1, 40))
        arrays = [
            np.array(draw(st.lists(VALUES, min_size=size, max_size=size)), np.float32) for _ in range(2)
        ]
        active = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
        made.append(Layer(name=f"w{number}", weights=arrays[0] * active, gradients=arrays[1], active=active))
    return made


@pytest.mark.parametrize("topology", update_cases(), ids=lambda t: "-".join(map(str, _label(t))))
@given(layers=layers(), step=st.integers(1, 3), seed=st.integers(0, 3))
def test_updates_choose_what_numpy_chooses(topology, layers, step, seed):
    check_update(
        TorchArrays(torch.device("cpu")),
        topology,
        layers,
        put=torch.from_numpy,
        get=lambda tensor: tensor.numpy(),
        step=step,
        seed=seed,
    )


def _label(topology):
    if topology.kind == "dynamic":
        return (
            topology.prune.kind,
            topology.grow.kind,
            topology.scope,
            topology.semantics.regrow,
            topology.semantics.rounding,
        )
    return topology.kind, topology.scope


def test_updates_choose_what_numpy_chooses_in_a_large_layer():
    rng = np.random.default_rng(0)
    active = rng.random(300_000) < 0.2
    weights = rng.standard_normal(active.size).astype(np.float32).round(2) * active
    layer = Layer(
        name="w",
        weights=weights,
        gradients=rng.standard_normal(active.size).astype(np.float32),
        active=active,
    )
    for topology in update_cases():
        check_update(
            TorchArrays(torch.device("cpu")), topology, [layer], put=torch.from_numpy, get=lambda t: t.numpy()
        )


def test_threefry_known_answers():
    vectors = [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ]
    for key, counter, answer in vectors:
        words = threefry2x32(key, *(torch.tensor([word]) for word in counter))
        assert tuple(int(word) for word in words) == answer


@given(start=st.integers(0, 2**40), seed=st.integers(0, 2**31))
def test_uniform_numbers_are_those_of_numpy(start, seed):
    where = slice(start, start + 20, 3)
    random = Random(seed)
    ours = TorchArrays(torch.device("cpu")).draws(random, weight="w", step=1, purpose="grow").uniform(where)
    np.testing.assert_array_equal(ours.numpy(), random.at(weight="w", step=1, purpose="grow").uniform(where))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_pointwise_convolutions_with_strides_keep_to_their_memory(channels: int) -> None:
    """PyTorch's own crash here on CPUs, sooner or later, where images are channels last."""
    torch.manual_seed(channels)
    op = ops.Conv2d(in_channels=channels, out_channels=8, kernel=(1, 1), stride=(2, 2), bias=True)
    ours, theirs = LOWERINGS[ops.Conv2d](op, [(channels, 8, 6)]), torch.nn.Conv2d(channels, 8, 1, 2)
    ours.load_state_dict(theirs.state_dict())
    ours.to(memory_format=torch.channels_last)
    for seed in range(20):
        x = torch.randn((8, channels, 8, 6), generator=torch.Generator().manual_seed(seed))
        last = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        first = x.clone().requires_grad_()
        found, expected = ours(last), theirs(first)
        torch.testing.assert_close(found, expected)
        found.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(last.grad, first.grad)
        # Sums of some thousand products near 1, each engine in its own order.
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-3)
