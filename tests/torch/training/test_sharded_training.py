"""The trainer with sharded weights: the masks of one process, and states that any number goes on from."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import nt_models
import nt_torch
from nt_core import PRESETS, CheckpointError, DataError, OneRun
from nt_core.states import States, Stopped
from nt_core.testing.data import Blobs
from nt_core.testing.resumption import expect_same
from nt_core.training import SGD, AdamW, Training

sys.path.insert(0, str(Path(__file__).parents[1]))

from ranks import in_processes

GRAPH = nt_models.mlp(inputs=6, hidden=(17, 16), classes=3)  # rows that do not divide evenly


def spec_of(preset):
    spec = PRESETS[preset](GRAPH)
    topology = spec.topology
    if hasattr(topology, "interval"):
        topology = topology.replace(interval=2, sparsity=min(topology.sparsity, 0.6))
    plan = spec.plan.replace(steps=10) if preset == "edst" else OneRun(epochs=2)
    return spec.replace(topology=topology, plan=plan)


def trained(rank, preset, shard, folder=None, stop_at=None, **recipe):
    """Train as the command line does; return values, masks, examples and what was tested."""
    taken = []
    states = folder and States(
        folder, every=3, stopping=lambda: bool(taken and stop_at) and taken[-1] >= stop_at
    )

    def report(event):
        if event["event"] == "step":
            taken.append(event["step"])

    recipe = Training(**{"batch_size": 24, "optimizer": AdamW(lr=0.01), **recipe})
    test = Blobs(30, shuffle=False)
    try:
        found = nt_torch.train(
            spec_of(preset),
            recipe,
            Blobs(90),
            test=test,
            device="cpu",
            states=states,
            report=report,
            shard=shard,
        )
    except Stopped as stopped:
        return str(stopped)
    saved = nt_torch.checkpoint(found.model)
    accuracy = found.metrics and found.metrics.accuracy
    return dict(saved.values), {name: mask.dense() for name, mask in saved.masks.items()}, accuracy


def expect_alike(found, wanted, *, exact=False):
    if exact:
        expect_same(found[:2], wanted[:2])
        return
    expect_same(found[1], wanted[1])
    for name, value in wanted[0].items():
        np.testing.assert_allclose(found[0][name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("preset", "recipe"),
    [
        ("neurotrails", {"accumulation": 2, "clip_norm": 0.5}),
        ("full_ensemble", {"optimizer": SGD(lr=0.05)}),
        ("edst", {}),
    ],
)
def test_it_comes_to_what_one_process_comes_to(preset, recipe):
    alone = trained(0, preset, False, **recipe)
    answers = in_processes(2, shard_trained, preset, recipe)
    for found, error in answers:
        assert error is None
        expect_alike(found, alone)
    assert answers[0][0][2] == alone[2]
    assert answers[1][0][2] is None or preset == "edst"


def shard_trained(rank, preset, recipe, *arguments):
    return trained(rank, preset, True, *arguments, **recipe)


def test_states_are_sharded_and_go_on_in_any_number_of_processes(tmp_path):
    """To the bit with as many processes, and with the same masks in another number, or one."""
    whole = in_processes(2, shard_trained, "neurotrails", {})[0][0]
    for answer, error in in_processes(2, shard_trained, "neurotrails", {}, tmp_path / "a", 5):
        assert error is None
        assert answer == "stopped after step 6 of 8"
    written = sorted(path.name for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert sum(name.startswith("shard-") for name in written) == 2 * 2  # two states of two parts
    for copy in "bc":
        shutil.copytree(tmp_path / "a", tmp_path / copy)
    for found, error in in_processes(2, shard_trained, "neurotrails", {}, tmp_path / "a"):
        assert error is None
        expect_alike(found, whole, exact=True)
    for found, error in in_processes(3, shard_trained, "neurotrails", {}, tmp_path / "b"):
        assert error is None
        expect_alike(found, whole)
    expect_alike(trained(0, "neurotrails", False, tmp_path / "c"), whole)


def test_a_state_of_one_process_is_divided(tmp_path):
    whole = trained(0, "neurotrails", False)
    assert trained(0, "neurotrails", False, tmp_path, 4) == "stopped after step 4 of 8"
    for found, error in in_processes(2, shard_trained, "neurotrails", {}, tmp_path):
        assert error is None
        expect_alike(found, whole)


def test_a_part_that_is_missing_or_altered_is_noticed(tmp_path):
    in_processes(2, shard_trained, "neurotrails", {}, tmp_path, 5)
    states = States(tmp_path / "all")
    last = states.latest()
    assert last.step == 6
    part = sorted(last.parts.iterdir())[0]
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    assert states.latest().step == 3
    sorted((states.folder / "step-000000003.parts").iterdir())[0].unlink()
    with pytest.raises(CheckpointError, match=r"a part is missing or altered; delete step-000000006"):
        states.latest()


def refused(rank, preset, precision):
    spec = PRESETS[preset](GRAPH).replace(plan=OneRun(epochs=1))
    nt_torch.train(spec, Training(batch_size=24, precision=precision), Blobs(90), device="cpu", shard=True)


@pytest.mark.parametrize(
    ("preset", "precision", "message"),
    [
        (
            "snip",
            "float32",
            "shard: topology prune_at_init is chosen from the gradients of the whole",
        ),
        ("cht", "float32", "weights are sharded, but"),
    ],
)
def test_what_cannot_be_sharded_is_refused(preset, precision, message):
    for _, error in in_processes(2, refused, preset, precision):
        assert message in error


def test_one_process_has_nobody_to_divide_with():
    with pytest.raises(DataError, match="shard: expected several processes, found one; start"):
        trained(0, "neurotrails", True)
    with pytest.raises(DataError, match="expected several processes that can talk, found none"):
        nt_torch.shard(nt_torch.compile(spec_of("neurotrails")))
