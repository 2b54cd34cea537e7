"""Heads in a loop or batched, blocks computed once or twice: the same numbers, masks and statistics."""

import copy
import sys
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import nt_models
import nt_torch
from nt_core import (
    MIMO,
    PRESETS,
    Dense,
    EnsembleSpec,
    Fission,
    Independent,
    MultiHead,
    OneRun,
    Single,
    SpecError,
    Static,
)
from nt_core.states import States, Stopped
from nt_core.testing.cases import structures_of
from nt_core.testing.data import Blobs
from nt_core.testing.resumption import expect_same, expect_same_outcome, train_in_pieces
from nt_core.training import Training
from nt_torch.network.execution import Execution
from nt_torch.network.measurement import MeasuredHeads, measure_heads

GRAPHS = {
    "mlp": nt_models.mlp(inputs=6, hidden=(16, 16), classes=3),
    "wide_resnet": nt_models.wide_resnet(depth=10, width=1, classes=3, size=8, channels=1, dropout=0.3),
    "vit": nt_models.vit(size=8, channels=1, patch=4, width=8, hidden=16, blocks=2, heads=2, classes=3),
}
WITHOUT_DROPOUT = {
    **GRAPHS,
    "wide_resnet": nt_models.wide_resnet(depth=10, width=1, classes=3, size=8, channels=1),
}


def spec_of(graph, preset="neurotrails"):
    spec = PRESETS[preset](graph)
    return spec.replace(topology=spec.topology.replace(interval=2, sparsity=0.5))


def trained(spec, execution, *, dtype=torch.float64, steps=8, precision=None):
    """Train a few steps, with an update after every other; return all that a next step would read."""
    torch.manual_seed(0)
    model = nt_torch.compile(spec, dtype=dtype)
    if any(parameter.dim() == 4 for parameter in model.parameters()):
        model.to(memory_format=torch.channels_last)
    model.execution = execution
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    topology = nt_torch.Topology(model, optimizer, total_steps=100)
    for _ in range(steps):
        x = torch.randn(8, *spec.layout.input_shape, dtype=dtype)
        y = torch.randint(0, 3, (8,))
        with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
            logits = model(x)
        nt_torch.ensemble_loss(logits.to(dtype), y).backward()
        optimizer.step()
        topology.step()
        optimizer.zero_grad()
        for name in model.masked:
            assert not model.array(name)[~model.mask(name)].any()
    random = torch.get_rng_state().numpy()
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    moments = {i: each["momentum_buffer"].numpy() for i, each in optimizer.state_dict()["state"].items()}
    return {"state": state, "moments": moments, "random": random}


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("heads", ["loop", "batched"])
def test_computing_blocks_again_changes_no_bit(graph, heads):
    spec = spec_of(GRAPHS[graph])
    once = trained(spec, Execution(heads=heads))
    again = trained(spec, Execution(heads=heads, activation_checkpointing=True))
    expect_same(again, once)


@pytest.mark.parametrize("structure", [None, MultiHead(split=0, heads=2), Independent(count=3)], ids=str)
@pytest.mark.parametrize("graph", GRAPHS)
def test_batched_heads_train_as_a_loop_does(graph, structure):
    spec = spec_of(WITHOUT_DROPOUT[graph])
    if structure is not None:
        spec = EnsembleSpec(graph=spec.graph, structure=structure, topology=spec.topology)
    loop, batched = (trained(spec, Execution(heads=heads)) for heads in ("loop", "batched"))
    assert loop["state"].keys() == batched["state"].keys()
    for name, wanted in loop["state"].items():
        found = batched["state"][name]
        if wanted.dtype == bool or np.issubdtype(wanted.dtype, np.integer):
            np.testing.assert_array_equal(found, wanted, name)
        else:
            np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-11, err_msg=name)


@given(
    graph=st.sampled_from(list(WITHOUT_DROPOUT)),
    structure=st.integers(0, 4),
    batch=st.integers(2, 5),
    training=st.booleans(),
    frozen=st.sets(st.integers(0, 30), max_size=5),
    seed=st.integers(0, 99),
)
def test_any_heads_give_the_same_logits_and_gradients(graph, structure, batch, training, frozen, seed):
    """Frozen parameters included: whoever trains one head only freezes the others."""
    structures = [s for s in structures_of(WITHOUT_DROPOUT[graph]).values() if s.members > 1]
    spec = EnsembleSpec(graph=WITHOUT_DROPOUT[graph], structure=structures[structure % len(structures)])
    x = torch.randn(batch, *spec.layout.input_shape, generator=torch.Generator().manual_seed(seed)).double()
    found = []
    for heads in ("loop", "batched"):
        model = nt_torch.compile(spec, seed=seed, dtype=torch.float64).train(training)
        model.execution = Execution(heads=heads)
        for number, parameter in enumerate(model.parameters()):
            parameter.requires_grad_(number not in frozen)
        logits = model(x)
        logits.square().sum().backward()
        found.append((logits.detach(), [p.grad for p in model.parameters()], list(model.buffers())))
    torch.testing.assert_close(found[1][0], found[0][0])
    for own, wanted in zip(found[1][1], found[0][1], strict=True):
        if wanted is not None:
            torch.testing.assert_close(own, wanted)
            assert own.stride() == wanted.stride()
        else:
            assert own is None
    torch.testing.assert_close(found[1][2], found[0][2])


def test_heads_drop_by_themselves():
    graph = nt_models.wide_resnet(depth=10, width=1, classes=3, size=8, channels=1, dropout=0.5)
    model = nt_torch.compile(EnsembleSpec(graph=graph, structure=Independent(count=2)))
    model.execution = Execution(heads="batched")
    with torch.no_grad():
        for own, other in zip(model.heads[0].parameters(), model.heads[1].parameters(), strict=True):
            own.copy_(other)
    x = torch.randn(4, 1, 8, 8)
    first, second = model.eval()(x)
    torch.testing.assert_close(first, second)
    first, second = model.train()(x)
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize("heads", ["loop", "batched"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_bfloat16_keeps_zeros(graph, heads):
    spec = spec_of(WITHOUT_DROPOUT[graph])
    found = trained(spec, Execution(heads=heads), dtype=torch.float32, precision=torch.bfloat16)
    wanted = trained(spec, Execution(), dtype=torch.float32)
    for name, value in wanted["state"].items():
        if value.dtype == bool:
            assert found["state"][name].sum() == value.sum()  # who is chosen depends on the last digits
        else:
            assert found["state"][name].dtype == value.dtype


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (Single(), "expected at least two heads, found 1"),
        (MIMO(count=2), "members share every block and are computed at once anyway"),
        (Fission(count=3), "head 1 has 3 blocks from 'hidden2' on, head 2 has 2 from 'hidden3' on"),
    ],
)
def test_what_cannot_be_batched_says_why(structure, message):
    topology = Static(sparsity=0.5) if isinstance(structure, Fission) else Dense()
    graph = nt_models.mlp(inputs=6, hidden=(16, 16, 16), classes=3)
    model = nt_torch.compile(EnsembleSpec(graph=graph, structure=structure, topology=topology))
    with pytest.raises(SpecError, match=rf"batched is not possible: .*{message}"):
        model.execution = Execution(heads="batched")
    with pytest.raises(SpecError, match=r"auto is chosen by nt_torch\.train"):
        model.execution = Execution(heads="auto")
    assert model.execution == Execution()


def one_head_in_evaluation_mode(model):
    model.heads[1].eval()


def norms_that_average_for_ever(model):
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None


def norms_of_all_processes(model):
    for i, head in enumerate(model.heads):
        model.heads[i] = torch.nn.SyncBatchNorm.convert_sync_batchnorm(head)


def a_hook_on_one_module(model):
    module = next(m for m in model.heads[2].modules() if isinstance(m, torch.nn.Conv2d))
    module.register_forward_hook(lambda _, inputs, output: 2 * output)


def a_hook_on_a_head(model):
    model.heads[0].register_forward_hook(lambda _, inputs, values: {k: 2 * v for k, v in values.items()})


@pytest.mark.parametrize(
    "change",
    [
        one_head_in_evaluation_mode,
        norms_that_average_for_ever,
        norms_of_all_processes,
        a_hook_on_one_module,
        a_hook_on_a_head,
    ],
)
def test_modules_that_somebody_changed_compute_what_they_compute_in_a_loop(change):
    """So torch.optim.swa_utils.update_bn, SyncBatchNorm and any module hook mean the same for all heads."""
    graph = nt_models.wide_resnet(depth=10, width=1, classes=4, size=8, channels=1)
    start, x, found = nt_torch.compile(spec_of(graph), seed=0), torch.randn(6, 1, 8, 8), []
    change(start)
    for heads in ("loop", "batched"):
        model = copy.deepcopy(start)
        model.execution = Execution(heads=heads)
        logits = [model(x + number) for number in range(2)]
        found.append([*logits, *(buffer for name, buffer in model.named_buffers() if "running" in name)])
    for loop, batched in zip(*found, strict=True):
        torch.testing.assert_close(loop, batched, rtol=1e-4, atol=1e-5)


def test_computing_again_keeps_less():
    graph = nt_models.wide_resnet(depth=16, width=1, classes=3, size=16, channels=1)
    x, kept = torch.randn(8, 1, 16, 16), {}
    for again in (False, True):
        model = nt_torch.compile(PRESETS["neurotrails"](graph))
        model.execution = Execution(activation_checkpointing=again)
        sizes = {}

        def note(tensor, sizes=sizes):
            sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model(x)
        kept[again] = sum(sizes.values())
    assert kept[True] < 0.5 * kept[False]


@pytest.mark.parametrize("graph", GRAPHS)
def test_measuring_changes_nothing(graph):
    torch.manual_seed(3)
    model = nt_torch.compile(spec_of(GRAPHS[graph]))
    x, y = torch.randn(6, *model.spec.layout.input_shape), torch.randint(0, 3, (6,))
    nt_torch.ensemble_loss(model(x), y).backward()
    kept = [t.clone() for t in (*model.state_dict().values(), *[p.grad for p in model.parameters()])]
    random = torch.get_rng_state()
    found = measure_heads(model, lambda: nt_torch.ensemble_loss(model(x), y))
    assert torch.equal(torch.get_rng_state(), random)
    now = [*model.state_dict().values(), *[p.grad for p in model.parameters()]]
    assert all(torch.equal(a, b) for a, b in zip(now, kept, strict=True))
    assert model.execution == Execution()
    assert found.heads == min(found.seconds, key=found.seconds.get)
    assert set(found.seconds) == {"loop", "batched"}


def chosen(way):
    """A measurement that finds what the test wants."""
    return lambda model, loss: (loss(), MeasuredHeads(heads=way, seconds={"loop": 1.0, "batched": 2.0}))[1]


@pytest.mark.parametrize("way", ["loop", "batched"])
@pytest.mark.parametrize("again", [False, True])
def test_a_training_goes_on_the_way_it_was_begun(way, again, tmp_path, monkeypatch):
    spec = spec_of(GRAPHS["mlp"]).replace(plan=OneRun(steps=9))
    monkeypatch.setattr(sys.modules["nt_torch.training.train"], "measure_heads", chosen(way))
    auto = Execution(heads="auto", activation_checkpointing=again)
    run = {"train": partial(nt_torch.train, execution=auto), "checkpoint": nt_torch.checkpoint}
    rest = {"spec": spec, "training": Training(batch_size=18)}
    whole = train_in_pieces(**run, **rest, folder=tmp_path / "whole")
    seen = []

    def measured_once(model, loss):
        seen.append(model)
        return chosen(way)(model, loss)

    monkeypatch.setattr(sys.modules["nt_torch.training.train"], "measure_heads", measured_once)
    pieces = train_in_pieces(**run, **rest, folder=tmp_path / "pieces", stops=(2, 5))
    expect_same_outcome(pieces, whole)
    assert len(seen) == 1
    assert pieces.state["execution"] == {"heads": way, "activation_checkpointing": again}
    told = Execution(heads=way, activation_checkpointing=again)
    run["train"] = partial(nt_torch.train, execution=told)
    expect_same_outcome(train_in_pieces(**run, **rest, folder=tmp_path / "told"), whole)
    begun = States(tmp_path / "begun", every=1, stopping=lambda: True)
    with pytest.raises(Stopped):
        nt_torch.train(spec, rest["training"], Blobs(), device="cpu", states=begun, execution=told)
    run["train"] = nt_torch.train
    expect_same_outcome(train_in_pieces(**run, **rest, folder=tmp_path / "begun"), whole)


def test_auto_reports_what_it_measured():
    events = []
    spec = spec_of(GRAPHS["mlp"]).replace(plan=OneRun(steps=2))
    for structure in (spec.structure, Single()):
        nt_torch.train(
            spec.replace(structure=structure),
            Training(batch_size=18),
            Blobs(),
            device="cpu",
            report=events.append,
            execution=Execution(heads="auto"),
        )
    first, second = (event for event in events if event["event"] == "heads")
    assert first["seconds"][first["heads"]] == min(first["seconds"].values())
    assert first["reason"] is None
    assert second == {
        "event": "heads",
        "heads": "loop",
        "seconds": {},
        "reason": "expected at least two heads, found 1",
    }


def test_heads_that_need_too_much_memory_are_looped():
    model = nt_torch.compile(spec_of(GRAPHS["mlp"]))

    def loss():
        if model.execution.heads == "batched":
            raise torch.OutOfMemoryError
        return model(torch.zeros(2, 6)).sum()

    found = measure_heads(model, loss)
    assert (found.heads, found.reason) == ("loop", "batched heads need more memory")
