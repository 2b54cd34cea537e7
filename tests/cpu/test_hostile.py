"""Programs that somebody made to do harm: refused, or answering from their input and their numbers alone."""

from functools import cache
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nt_models
from nt_core import EnsembleSpec, MultiHead, NeuroTrailsError, Static
from nt_core.spec import PRESETS
from nt_core.testing import random_input, random_values
from nt_cpu.code import KINDS, program
from nt_cpu.native import NativeProgram, peak_flops
from nt_cpu.network import network
from nt_models.tiny import TINY
from tests.fuzz.programs import BATCH, FLOATS, accepted, expect_no_leak, hostile, listing

BATCHES = (1, 3)
"""One has products of one position, which threads compute by rows."""


@cache
def sound(name, batch):
    """A sound program, its sizes, and inputs."""
    if name == "mimo":
        spec = PRESETS["mimo"](TINY["wide_resnet"]())
    else:
        spec = EnsembleSpec(graph=TINY[name](), structure=MultiHead(split=1, heads=2))
    values = {
        name: np.where(np.random.default_rng(0).random(value.shape) < 0.5, value, 0)
        if value.ndim > 1
        else value
        for name, value in random_values(spec.layout, 0, np.float32).items()
    }
    x = random_input(spec.graph, 4, 0).astype(np.float32)
    written = program(network(spec.layout, values), batch)
    return written, (x[0].size, spec.members, int(np.prod(spec.graph.output_shape))), x.reshape(4, -1)


@settings(max_examples=150)
@given(
    name=st.sampled_from([*sorted(TINY), "mimo"]), batch=st.sampled_from(BATCHES), seed=st.integers(0, 2**32)
)
def test_a_hostile_program_is_refused_or_answers_from_its_input_alone(name, batch, seed):
    written, sizes, x = sound(name, batch)
    made = hostile(written, Random(seed))
    answers = [
        expect_no_leak(native, x, *sizes[1:])
        for threads in (1, 3)
        if (native := accepted(made, sizes, threads)) is not None
    ]
    for other in answers[1:]:
        np.testing.assert_array_equal(answers[0], other)


def changed(change, name="vit", batch=1):
    written = sound(name, batch)[0]
    found = listing(written)
    change(found)
    return found.program()


def kinds(found, kind):
    return [op for op in found.ops if op[0] == KINDS.index(kind)]


def no_output_for_the_last_member(found):
    found.ops.remove(kinds(found, "output")[-1])


def one_member_twice(found):
    kinds(found, "output")[-1][3] = 0


def memory_that_is_not_whole_lines(found):
    found.head[FLOATS] += 1


def values_that_share_a_place(found):
    first, second = (op[2] for op in found.ops[:2])
    found.values[first][0] = found.values[second][0]


def a_read_before_the_write(found):
    found.ops[1], found.ops[2] = found.ops[2], found.ops[1]


def no_input(found):
    del found.ops[0]


def a_class_token_that_is_not_filled(found):
    found.ops.remove(kinds(found, "fill")[0])


def a_class_token_over_the_tokens(found):
    kinds(found, "fill")[0][3] = 1


def a_move_twice(found):
    place = found.ops.index(kinds(found, "move")[-1])
    found.ops.insert(place, found.ops[place])


def a_row_twice(found):
    at, which = found.blocks[0]
    rows = np.frombuffer(found.blob, np.uint32, 2, found.ops[at][which + 7])
    rows[1] = rows[0]


def connections_between_two_lines(found):
    at, which = next((at, which) for at, which in found.blocks if found.ops[at][which + 3])
    np.frombuffer(found.blob, np.uint16, 1, found.ops[at][which + 5])[0] += 8


def an_output_that_is_another_value(found):
    output, other = kinds(found, "output")[0], kinds(found, "output")[1]
    found.values[other[1]][0] = found.values[output[1]][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_output_for_the_last_member, "output: 1 of 2 members get none"),
        (one_member_twice, "output: 1 of 2 members get none"),
        (memory_that_is_not_whole_lines, "expected whole lines of 16 numbers"),
        (values_that_share_a_place, "writes over a value that is still read"),
        (an_output_that_is_another_value, "writes over a value that is still read"),
        (a_read_before_the_write, "reads value .* before all of it is written"),
        (no_input, "before all of it is written|reads no input"),
        (a_class_token_that_is_not_filled, "before all of it is written"),
        (a_class_token_over_the_tokens, "written twice"),
        (a_move_twice, "written twice"),
        (a_row_twice, "is in two places"),
        (connections_between_two_lines, "outside of its panel"),
    ],
    ids=lambda part: getattr(part, "__name__", ""),
)
def test_a_program_that_would_answer_with_what_lay_in_memory_is_refused(change, message):
    with pytest.raises(NeuroTrailsError, match=message):
        NativeProgram(changed(change, batch=3), 1)


def test_rows_of_one_product_stay_in_their_sets():
    """Two threads would add to one row at a time."""

    def a_row_in_another_set(found):
        at, which = found.blocks[1]
        rows = np.frombuffer(found.blob, np.uint32, found.ops[at][which + 2], found.ops[at][which + 7])
        rows[[0, -1]] = rows[[-1, 0]]

    graph = nt_models.wide_resnet(depth=10, width=4, classes=5, size=8)
    spec = EnsembleSpec(graph=graph, topology=Static(sparsity=0.5))
    written = program(network(spec.layout, random_values(spec.layout, 0, np.float32)), 1)
    found = listing(written)
    found.blocks = [block for block in found.blocks if block[0] == _of_several_blocks(found)]
    a_row_in_another_set(found)
    with pytest.raises(NeuroTrailsError, match="is in two places"):
        NativeProgram(found.program(), 1)


def _of_several_blocks(found):
    owners = [op for op, _ in found.blocks]
    return next(op for op in owners if owners.count(op) > 1)


@pytest.mark.parametrize("threads", [0, -1, 1025, 100_000, 2**60, 2**64 + 1])
def test_memory_of_too_many_threads_is_not_summed(threads):
    written, _, _ = sound("vit", 1)
    with pytest.raises(NeuroTrailsError, match="threads: expected 1 to 1024"):
        NativeProgram(written, threads)
    with pytest.raises(NeuroTrailsError, match="threads: expected 1 to 1024"):
        peak_flops(threads)
    if threads < 2**63:
        native = NativeProgram(written, 1)
        assert native._library.nt_memory(native._engine, threads) == -1


def test_the_change_of_a_batch_is_no_leak():
    """The oracle itself: what it calls sound is sound, and answers as before."""
    written, sizes, x = sound("llama", BATCHES[1])
    native = accepted(written, sizes, 1)
    truth = expect_no_leak(native, x, *sizes[1:])
    found = listing(written)
    found.head[BATCH] -= 1
    other = accepted(found.program(), sizes, 1)
    np.testing.assert_array_equal(expect_no_leak(other, x, *sizes[1:]), truth)
