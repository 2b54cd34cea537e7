"""What one process of many holds and sends: what must be so whatever the spec."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nt_models
from nt_core import PRESETS, Dynamic, EnsembleSpec, Independent, NeuroTrailsError
from nt_core.cost import cost, scale, state_tensors, update_messages
from nt_core.cost.messages import Messages
from nt_core.cost.per_process import WIDTHS
from nt_core.policies import AtRandom, Magnitude, SoftMagnitude
from nt_core.topology import DropFraction, expect_shardable
from nt_core.training import SGD, Adam, AdamW

GRAPHS = (
    nt_models.mlp(inputs=7, hidden=(17, 16), classes=3),
    nt_models.llama(blocks=3, width=16, hidden=20, heads=4, kv_heads=2, vocabulary=11, length=6),
    nt_models.resnet(depth=10, width=3, classes=3, size=40, channels=2),
)


def shardable(spec):
    try:
        expect_shardable(spec.topology)
    except NeuroTrailsError:
        return False
    return True


def specs():
    for preset, make in PRESETS.items():
        for graph in GRAPHS:
            if not (preset == "mimo" and graph is GRAPHS[1]):  # it stacks no tokens
                yield make(graph)


SPECS = list(specs())
SHARDABLE = [spec for spec in SPECS if shardable(spec)]
RANKS = st.integers(1, 600)
SETTINGS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(list(WIDTHS)),
        "states": st.integers(0, 3),
        "units": st.sampled_from(["parts", "blocks"]),
    }
)
HELD = ("parameters", "gradients", "optimizer", "masks", "smoothed")


@given(spec=st.sampled_from(SPECS), ranks=RANKS, settings=SETTINGS)
def test_bytes_add_up(spec, ranks, settings):
    for wrap in ("ddp", "fsdp2")[: 1 + shardable(spec)]:
        found = scale(spec, ranks=ranks, wrap=wrap, **settings)
        device = asdict(found.device)
        assert all(isinstance(count, int) and count >= 0 for count in device.values())
        assert found.device.held + device["step"] + device["update"] == sum(device.values())
        assert found.device.peak == found.device.held + max(device["step"], device["update"])
        assert device["gradients"] == device["parameters"]
        assert device["optimizer"] == settings["states"] * device["parameters"]
        assert found.to_dict()["device"]["peak"] == found.device.peak
        assert found.to_dict()["messages"]["sent"] == found.update_sent


@given(spec=st.sampled_from(SPECS), ranks=RANKS, settings=SETTINGS)
def test_with_ddp_each_holds_everything_however_many_there_are(spec, ranks, settings):
    one, many = (scale(spec, ranks=count, **settings) for count in (1, ranks))
    assert (one.device, one.host) == (many.device, many.host)
    width = WIDTHS[settings["dtype"]]
    assert one.device.parameters == one.parameters * width.kept
    assert one.device.masks == one.maskable
    assert one.step_sent == one.update_sent == 0
    assert many.step_sent < 2 * one.parameters * width.reduced + one.device.statistics + 1


@given(spec=st.sampled_from(SHARDABLE), fewer=RANKS, more=RANKS, settings=SETTINGS)
def test_with_fsdp2_more_processes_never_hold_more(spec, fewer, more, settings):
    fewer, more = sorted((fewer, more))
    few, many = (scale(spec, ranks=count, wrap="fsdp2", **settings) for count in (fewer, more))
    for name in (*HELD, "update"):
        assert getattr(many.device, name) <= getattr(few.device, name)
    assert many.device.held <= few.device.held
    assert many.host.seen <= few.host.seen
    assert many.host.update <= few.host.update


@given(spec=st.sampled_from(SHARDABLE), ranks=RANKS, settings=SETTINGS)
def test_what_all_hold_together_is_the_whole_and_the_filling_of_rows(spec, ranks, settings):
    found = scale(spec, ranks=ranks, wrap="fsdp2", **settings)
    whole = scale(spec, ranks=1, **settings)
    row = sum(p.weight.size // p.weight.shape[0] for p in spec.turns[0].layout.weights if p.weight.trainable)
    width = WIDTHS[settings["dtype"]].kept
    together = ranks * found.device.parameters
    assert whole.device.parameters <= together <= whole.device.parameters + ranks * row * width
    assert found.device.statistics == whole.device.statistics


@given(spec=st.sampled_from(SHARDABLE), ranks=st.integers(2, 600), settings=SETTINGS)
def test_units_that_are_smaller_take_no_more(spec, ranks, settings):
    parts, blocks = (
        scale(spec, ranks=ranks, wrap="fsdp2", **settings | {"units": units}) for units in ("parts", "blocks")
    )
    assert blocks.device.step <= parts.device.step
    assert blocks.step_sent == parts.step_sent
    assert blocks.device.held == parts.device.held


@given(ranks=st.integers(2, 64), dtype=st.sampled_from(list(WIDTHS)))
def test_fsdp2_sends_by_rings_what_its_rows_are(ranks, dtype):
    """Rows that divide evenly: two gathers of what is computed with, one scatter of what is reduced."""
    spec = PRESETS["neurotrails"](nt_models.mlp(inputs=4, hidden=(2 * ranks, ranks), classes=ranks))
    found = scale(spec, ranks=ranks, wrap="fsdp2", dtype=dtype)
    width = WIDTHS[dtype]
    whole = found.parameters * (2 * width.computed + width.reduced)
    assert found.step_sent * ranks == (ranks - 1) * whole


@given(spec=st.sampled_from(SPECS))
def test_parameters_are_those_that_cost_counts(spec):
    found, counted = scale(spec, ranks=1), cost(spec.turns[0])
    trained = spec.turns[0]
    if trained.members == trained.result.members:
        assert found.parameters == counted.parameters_total
        assert found.maskable in (0, counted.weights_total)
        assert found.active == (counted.weights_active if found.maskable else 0)


def test_members_in_turn_take_the_memory_of_one():
    whole = PRESETS["dst_ensemble"](GRAPHS[0])
    alone = EnsembleSpec(graph=GRAPHS[0], structure=Independent(count=1), topology=whole.topology)
    assert scale(whole, ranks=1).device == scale(alone, ranks=1).device


def test_a_dense_network_has_neither_masks_nor_updates():
    found = scale(PRESETS["single"](GRAPHS[1]), ranks=8)
    assert (found.maskable, found.device.masks, found.device.update, found.host.seen) == (0, 0, 0, 0)
    assert found.messages == Messages()


# Updates, by hand


def network(**changes):
    topology = Dynamic(sparsity=0.5, **changes)
    return EnsembleSpec(graph=nt_models.mlp(inputs=64, hidden=(), classes=32), topology=topology)


@pytest.mark.parametrize(
    ("changes", "all_reduces", "numbers", "searches"),
    [
        # finite: before, twice after; active, inactive; twice: how many, three digits; grown again; totals
        ({}, 1 + 2 + 2 + 2 * 4 + 1 + 1, 3 + 2 + 2 * (2 + 4096 + 4096 + 256) + 1 + 4, 2),
        # float64 scores have six digits; random growth reads no gradient
        (
            {"prune": SoftMagnitude(), "grow": AtRandom()},
            1 + 2 + 2 * 7 + 1 + 1,
            1 + 2 + 2 * (2 + 5 * 4096 + 16) + 1 + 4,
            2,
        ),
        # nothing is dropped: how many there are is asked all the same
        ({"drop_fraction": DropFraction(start=0)}, 3 + 2 + 2 + 1 + 1, 3 + 2 + 2 * 2 + 1 + 4, 0),
    ],
)
def test_messages_of_one_weight(changes, all_reduces, numbers, searches):
    found = update_messages(network(**changes), ranks=4, sharded=True)
    assert found.all_reduces == all_reduces
    assert found.reduced == 8 * numbers
    assert (found.all_gathers, found.gathered) == (searches, 8 * searches)
    assert found.sent(4) == 2 * 3 * 8 * numbers // 4 + 3 * 8 * searches
    assert found.calls == all_reduces + searches


@given(st.integers(1, 40), st.integers(1, 40))
def test_messages_do_not_grow_with_the_weights(inputs, more):
    small, large = (
        PRESETS["neurotrails"](nt_models.mlp(inputs=10 + n, hidden=(40, 40), classes=20))
        for n in (inputs, inputs + more)
    )
    assert update_messages(small, ranks=8, sharded=True) == update_messages(large, ranks=8, sharded=True)


@pytest.mark.parametrize("wrap", ["ddp", "fsdp2"])
def test_a_criterion_that_is_exact_is_chosen_by_on_the_device(wrap):
    here, there = (scale(network(prune=p), ranks=1, wrap=wrap) for p in (Magnitude(), SoftMagnitude()))
    size = here.maskable
    assert here.host.update == 2 * size // 8
    assert there.host.update > here.host.update + 9 * size  # weights, gradients and masks
    assert here.device.update > there.device.update


# What is asked for


def test_states_of_optimisers():
    assert [state_tensors(o) for o in (SGD(momentum=0), SGD(), Adam(), AdamW())] == [0, 1, 2, 2]


def test_no_ranks_are_refused():
    with pytest.raises(NeuroTrailsError, match="ranks: expected at least 1, found 0"):
        scale(network(), ranks=0)


@pytest.mark.parametrize("preset", ["cht", "snfs", "gradual_pruning"])
def test_what_cannot_be_sharded_is_refused(preset):
    spec = PRESETS[preset](GRAPHS[0])
    assert scale(spec, ranks=8).device.peak
    with pytest.raises(NeuroTrailsError, match="weights are sharded, but"):
        scale(spec, ranks=8, wrap="fsdp2")


def test_a_large_model_by_hand():
    """TinyLlama: 7 of its 22 blocks in the backbone, so 7 + 3 × 15 of them, and three projections."""
    block = 2 * 2048**2 + 2 * 2048 * 256 + 3 * 2048 * 5632
    spec = PRESETS["neurotrails"](nt_models.llama_1b())
    found = scale(spec, ranks=64, wrap="fsdp2", dtype="mixed", states=2, units="blocks")
    assert found.maskable == 52 * block + 3 * 32_000 * 2048
    assert found.parameters == found.maskable + 32_000 * 2048 + 2048 * (2 * 52 + 3)
    assert found.active == round(0.2 * found.maskable)
    assert found.device.parameters == 4 * found.parameters // 64  # every row count is a multiple of 64
    # Most in the backward pass of head 2's projection: its weights and gradients, the block that is gathered
    # ahead, and head 3's first block, whose gradients are still being scattered.
    projection, block = 32_000 * 2048 + 2048, block + 2 * 2048
    assert found.device.step == (2 + 2) * projection + 2 * block + 4 * block
