"""Several processes train one model: the same masks in each, those of one process with the whole batch."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import nt_models
import nt_torch
from nt_core import PRESETS, OneRun
from nt_core.states import States, Stopped
from nt_core.testing.data import Blobs
from nt_core.testing.resumption import expect_same
from nt_core.testing.spoiling import spoilt
from nt_core.training import SGD, Training
from nt_torch import Execution

sys.path.insert(0, str(Path(__file__).parents[1]))

from ranks import in_processes

GRAPH = nt_models.mlp(inputs=6, hidden=(16, 16), classes=3)
NORMED = nt_models.mlp(inputs=6, hidden=(16, 16), classes=3, norm=True)
DYNAMIC = ["rigl", "set", "neurotrails", "snfs", "cht"]


def spec_of(preset):
    spec = PRESETS[preset](GRAPH)
    sparsity = min(spec.topology.sparsity, 0.6)
    return spec.replace(topology=spec.topology.replace(interval=2, sparsity=sparsity))


def own_loop(
    rank,
    preset,
    world,
    accumulation,
    seeds=(0, 0, 0, 0),
    execution=Execution(),  # noqa: B008
    mask_each=False,
    views=False,
):
    """A user's own loop, in double precision; returns every mask after each update."""
    if world > 1:
        torch.distributed.init_process_group("gloo")
    model = nt_torch.compile(spec_of(preset), dtype=torch.float64)
    model.execution = execution
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=views) if world > 1 else model
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    topology = nt_torch.Topology(wrapped, optimizer, total_steps=40, seed=seeds[rank])
    masks = []
    for epoch in range(6):
        for inputs, labels in Blobs(96).epoch(epoch, 24):
            for part in np.split(np.arange(24), accumulation):
                own = part.reshape(world, -1)[rank]
                x, y = torch.from_numpy(inputs[own]).double(), torch.from_numpy(labels[own])
                last = part[-1] == 23
                with wrapped.no_sync() if world > 1 and not last else torch.enable_grad():
                    (nt_torch.ensemble_loss(wrapped(x), y) / accumulation).backward()
                if mask_each:
                    topology.mask_gradients()
            optimizer.step()
            if topology.step() is not None:
                masks.append({name: model.mask(name).numpy().copy() for name in model.masked})
            optimizer.zero_grad()
    return masks


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("preset", DYNAMIC)
def test_masks_are_those_of_one_process_with_the_whole_batch(preset, world):
    alone = own_loop(0, preset, 1, 1)
    assert len(alone) > 5
    assert any((alone[0][name] != alone[-1][name]).any() for name in alone[0])
    for accumulation in (1, 3):
        for masks, error in in_processes(world, own_loop, preset, world, accumulation):
            assert error is None
            expect_same(masks, alone)


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("preset", ["rigl", "snfs"])
def test_gradients_may_be_masked_after_each_micro_batch_that_no_process_has_sent_yet(preset, views):
    alone = own_loop(0, preset, 1, 1)
    for masks, error in in_processes(2, own_loop, preset, 2, 3, (0, 0), Execution(), True, views):
        assert error is None
        expect_same(masks, alone)


@pytest.mark.parametrize("again", [False, True])
def test_batched_heads_have_the_same_masks(again):
    alone = own_loop(0, "neurotrails", 1, 1)
    batched = Execution(heads="batched", activation_checkpointing=again)
    for masks, error in in_processes(2, own_loop, "neurotrails", 2, 1, (0, 0), batched):
        assert error is None
        expect_same(masks, alone)


def test_ranks_that_disagree_stop_with_an_error():
    for _, error in in_processes(3, own_loop, "set", 3, 1, (0, 0, 7)):
        assert "TopologyError: weight 'head1/" in error
        assert "step 2: ranks do not have the same mask: 2 of 3 differ from the others" in error


def trained(rank, preset, accumulation, folder, stop_at, heads="loop"):
    """Train as the command line does."""
    taken, losses = [], []
    states = States(folder, every=1, stopping=lambda: bool(taken) and taken[-1] == stop_at)

    def report(event):
        if event["event"] == "step":
            taken.append(event["step"])
        if event["event"] == "epoch":
            losses.append(event["loss"])

    spec = spec_of(preset).replace(plan=OneRun(epochs=2))
    recipe = Training(batch_size=24, accumulation=accumulation, optimizer=SGD(lr=0.1))
    try:
        found = nt_torch.train(
            spec,
            recipe,
            Blobs(90),
            device="cpu",
            states=states,
            report=report,
            execution=Execution(heads=heads),
        )
    except Stopped as stopped:
        return str(stopped)
    saved = nt_torch.checkpoint(found.model)
    masks = {name: mask.dense() for name, mask in saved.masks.items()}
    return dict(saved.values), masks, found.examples, losses[-1:]


@pytest.mark.parametrize(("world", "accumulation"), [(3, 1), (4, 2)])
def test_the_trainer_divides_batches_and_goes_on(world, accumulation, tmp_path):
    """Bit for bit with more than two processes too, where the order of sums matters."""
    values, masks, examples, _ = trained(0, "neurotrails", accumulation, tmp_path / "alone", None)
    assert examples == 180
    whole = in_processes(world, trained, "neurotrails", accumulation, tmp_path / "whole", None)
    for found, error in whole:
        assert error is None
        expect_same(found[1], masks)
        for name, value in values.items():
            np.testing.assert_allclose(found[0][name], value, rtol=1e-4, atol=1e-5)
    for answer, error in in_processes(world, trained, "neurotrails", accumulation, tmp_path / "pieces", 5):
        assert error is None
        assert answer == "stopped after step 5 of 8"
    again = in_processes(world, trained, "neurotrails", accumulation, tmp_path / "pieces", None)
    for (found, error), (wanted, _) in zip(again, whole, strict=True):
        assert error is None
        expect_same(found, wanted)
        expect_same(found[:3], whole[0][0][:3])


def passing_over(rank, accumulation, non_finite, scale, folder):
    """Train on batches of which only one rank's share is spoilt; return counts, values, masks and events."""
    trainer = nt_torch.train.__globals__
    make = trainer["make_accelerator"]

    def made(*args):
        accelerator = make(*args)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale) if scale else None
        return accelerator

    trainer["make_accelerator"] = made
    spec = spec_of("snfs").replace(plan=OneRun(epochs=3), graph=NORMED)
    recipe = Training(
        batch_size=24, accumulation=accumulation, optimizer=SGD(lr=0.1), non_finite=non_finite, clip_norm=1.0
    )
    events, states = [], States(folder, every=5)
    data = spoilt(120, [25, 119])
    found = nt_torch.train(spec, recipe, data, device="cpu", states=states, report=events.append)
    saved = nt_torch.checkpoint(found.model)
    skips = [event["skipped"] for event in events if event["event"] == "skipped"]
    return (found.skipped, found.steps), dict(saved.values), saved.masks, skips


@pytest.mark.parametrize(("accumulation", "scale"), [(1, None), (2, None), (2, 16.0)])
def test_all_ranks_pass_over_what_one_cannot_use(accumulation, scale, tmp_path):
    answers = in_processes(2, passing_over, accumulation, "skip", scale, tmp_path / "skip")
    for (counts, values, masks, _), error in answers:
        assert error is None
        assert counts == (9, 15)
        assert masks == answers[0][0][2]
        assert all(np.isfinite(value).all() for value in values.values())
        trained = {name: value for name, value in values.items() if "running" not in name}
        expect_same(trained, {name: answers[0][0][1][name] for name in trained})
    assert [skips for (_, _, _, skips), _ in answers] == [list(range(1, 10)), []]
    where = (
        "step 2: the loss is not" if scale else "weight 'head1/hidden1/linear1.weight', step 2: the norm of"
    )
    for _, error in in_processes(2, passing_over, accumulation, "stop", scale, tmp_path / "stop"):
        assert error.startswith(f"NotFiniteError: {where}")


def test_the_first_process_chooses_for_all(tmp_path):
    values, *_ = trained(0, "neurotrails", 1, tmp_path / "alone", None)
    for found, error in in_processes(2, trained, "neurotrails", 1, tmp_path / "both", None, "auto"):
        assert error is None
        for name, value in values.items():
            np.testing.assert_allclose(found[0][name], value, rtol=1e-4, atol=1e-5)
