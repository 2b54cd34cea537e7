"""Hostile programs of the native engine: a sound program's form, in which one or a few things are changed.

The checksum of a packed file is of no help against them: whoever changes a program computes it anew. A
program is refused, or it answers from its input and its own numbers alone: :func:`expect_no_leak`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

import numpy as np

from nt_core import NeuroTrailsError
from nt_cpu.code import ALIGNMENT, KINDS, Program
from nt_cpu.native import NativeProgram

HEAD_WORDS, VALUE_WORDS, BLOCK_WORDS = 7, 4, 9
BATCH, FLOATS, MEMBERS = 2, 3, 4
OP_WORDS: Final = {
    **dict.fromkeys(("add", "multiply", "input", "global_average"), 3),
    **dict.fromkeys(("output", "function"), 4),
    **dict.fromkeys(("max_pool", "average_pool"), 14),
    **dict.fromkeys(("affine", "norm", "fill"), 6),
    "embedding": 5,
    "attention": 10,
    "move": 22,
    "product": 24,
}
ONE_VALUE: Final = {KINDS.index(kind) for kind in ("input", "output", "fill")}
PRODUCT, OUTPUT = KINDS.index("product"), KINDS.index("output")
MOST_BYTES: Final = 1 << 24
"""Programs that need more working memory are not run."""


@dataclass(slots=True)
class Listing:
    """A program taken apart.

    Attributes:
        head: the words before the values, without their number.
        values: place, channels, positions, merged of each.
        ops: each op's words.
        blocks: (op, first word in it) of each block of a product.
        blob: the arrays.
    """

    head: list[int]
    values: list[list[int]]
    ops: list[list[int]]
    blocks: list[tuple[int, int]]
    blob: bytearray

    def program(self) -> Program:
        """Put the program together."""
        words = [
            *self.head,
            len(self.values),
            *(word for value in self.values for word in value),
            len(self.ops),
            *(word for op in self.ops for word in op),
        ]
        limits = np.iinfo(np.int64)
        code = np.array([min(max(word, limits.min), limits.max) for word in words], np.int64)
        return Program(code, np.frombuffer(bytes(self.blob), np.uint8))


def listing(program: Program) -> Listing:
    """Take a program apart.

    Raises:
        IndexError: it has not a program's form.
    """
    words = program.code.tolist()
    if not 0 < words[HEAD_WORDS - 1] < len(words):
        raise IndexError(words[HEAD_WORDS - 1])
    at = HEAD_WORDS + VALUE_WORDS * words[HEAD_WORDS - 1]
    values = [words[i : i + VALUE_WORDS] for i in range(HEAD_WORDS, at, VALUE_WORDS)]
    found = Listing(words[: HEAD_WORDS - 1], values, [], [], bytearray(program.blob))
    at += 1
    while at < len(words):
        kind = KINDS[words[at] if words[at] >= 0 else len(KINDS)]
        end = at + OP_WORDS[kind]
        for _ in range(words[end - 1] if kind == "product" else 0):
            last = end + words[end] * BLOCK_WORDS
            if not end <= last < len(words):
                raise IndexError(last)
            found.blocks += [(len(found.ops), first - at) for first in range(end + 1, last + 1, BLOCK_WORDS)]
            end = last + 1
        found.ops.append(words[at:end])
        at = end
    return found


def program_of(header: bytes, body: bytes) -> Program:
    """Take a program from a packed file's header, which is JSON, and its tensors."""
    places = json.loads(header)
    code, blob = (body[slice(*places[name]["data_offsets"])] for name in ("code", "blob"))
    return Program(np.frombuffer(code, np.int64), np.frombuffer(blob, np.uint8))


def tensors_of(program: Program) -> tuple[bytes, bytes]:
    """Return the header and the tensors of a packed file."""
    header, end = {}, 0
    for name, dtype, array in (("code", "I64", program.code), ("blob", "U8", program.blob)):
        header[name] = {"dtype": dtype, "shape": [len(array)], "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    return json.dumps(header).encode(), program.code.tobytes() + program.blob.tobytes()


def hostile(program: Program, random: Random) -> Program:
    """Return a program with one to three things changed."""
    found = listing(program)
    for _ in range(random.choice((1, 1, 2, 3))):
        random.choice(CHANGES)(found, random)
    return found.program()


def _near(number: int, random: Random) -> int:
    return random.choice(
        (0, 1, -1, number + 1, number - 1, number + 16, number - 16, 2 * number, number // 2)
    )


def _head(found: Listing, random: Random) -> None:
    place = random.choice((BATCH, FLOATS, FLOATS, MEMBERS, MEMBERS + 1))
    found.head[place] = _near(found.head[place], random)


def _value(found: Listing, random: Random) -> None:
    value = random.choice(found.values)
    place = random.randrange(VALUE_WORDS)
    value[place] = random.choice((_near(value[place], random), random.choice(found.values)[place]))


def _exchange_places(found: Listing, random: Random) -> None:
    one, other = random.choice(found.values), random.choice(found.values)
    one[0], other[0] = other[0], one[0]


def _drop_op(found: Listing, random: Random) -> None:
    if len(found.ops) > 1:
        gone = random.randrange(len(found.ops))
        del found.ops[gone]
        found.blocks = [(op - (op > gone), at) for op, at in found.blocks if op != gone]


def _exchange_ops(found: Listing, random: Random) -> None:
    one = random.randrange(len(found.ops))
    other = random.choice((min(one + 1, len(found.ops) - 1), random.randrange(len(found.ops))))
    found.ops[one], found.ops[other] = found.ops[other], found.ops[one]
    now = {one: other, other: one}
    found.blocks = [(now.get(op, op), at) for op, at in found.blocks]


def _double_op(found: Listing, random: Random) -> None:
    found.ops.append(list(random.choice(found.ops)))


def _redirect(found: Listing, random: Random) -> None:
    """Let an op read or write another value, of the same shape if there is one."""
    op = random.choice(found.ops)
    side = random.choice((1, 2))
    shape = found.values[op[side]][1:] if 0 <= op[side] < len(found.values) else None
    alike = [n for n, value in enumerate(found.values) if value[1:] == shape and n != op[side]]
    op[side] = random.choice(alike or range(len(found.values)))
    if op[0] in ONE_VALUE:
        op[3 - side] = op[side]


def _member(found: Listing, random: Random) -> None:
    outputs = [op for op in found.ops if op[0] == OUTPUT]
    if outputs:
        random.choice(outputs)[3] = random.randrange(max(found.head[MEMBERS], 1))


def _word(found: Listing, random: Random) -> None:
    op = random.choice(found.ops)
    place = random.randrange(len(op))
    op[place] = random.choice((_near(op[place], random), random.choice(op)))


def _array(found: Listing, random: Random) -> None:
    """Change a block's numbers: an offset, a count with another, a row, the sets of rows."""
    if not found.blocks:
        return
    op, at = random.choice(found.blocks)
    block = found.ops[op][at : at + BLOCK_WORDS]
    if len(block) < BLOCK_WORDS or found.ops[op][0] != PRODUCT:
        return
    _, _, rows, connections, _, offsets, counts, which, sets = block
    start, count, dtype = random.choice(
        (
            (offsets, connections, np.uint16),
            (counts, rows, np.uint32),
            (which, rows, np.uint32),
            (sets, 13, np.uint32),
        )
    )
    width = np.dtype(dtype).itemsize
    if count < 1 or start < 0 or start % width or start + count * width > len(found.blob):
        return
    array = np.frombuffer(found.blob, dtype, count, start)
    one, other = random.randrange(count), random.randrange(count)
    match random.randrange(4):
        case 0:
            array[one] = array[other]
        case 1:
            array[[one, other]] = array[[other, one]]
        case 2 if array[one]:
            array[one] -= 1
            array[other] += 1
        case _:
            array[one] = _near(int(array[one]), random) % (1 << 8 * width)


CHANGES: Final[tuple[Callable[[Listing, Random], None], ...]] = (
    _head,
    _value,
    _exchange_places,
    _drop_op,
    _exchange_ops,
    _double_op,
    _redirect,
    _member,
    _word,
    _array,
    _array,
)


def accepted(program: Program, sizes: tuple[int, int, int], threads: int) -> NativeProgram | None:
    """Open a program as an engine does; None if it is refused, or not run here.

    Args:
        program: sound or not.
        sizes: numbers of an example, members, numbers of a member's logits.
        threads: of a run.
    """
    try:
        native = NativeProgram(program, threads)
        native.expect_shapes(*sizes)
    except NeuroTrailsError:
        return None
    return native if native._bytes < MOST_BYTES else None


def expect_no_leak(native: NativeProgram, x: np.ndarray, members: int, outputs: int) -> np.ndarray:
    """Run twice, from memory full of NaN and full of zeros; the answers must be the same."""
    found = []
    for filling in (0xFF, 0):
        native._spare[:] = [np.full(native._bytes, filling, np.uint8)]
        logits = np.frombuffer(bytes([filling]) * (4 * members * len(x) * outputs), np.float32).copy()
        native.run(x, logits.reshape(members, len(x), outputs))
        found.append(logits)
    np.testing.assert_array_equal(*found)
    assert native._bytes % ALIGNMENT == 0
    return found[0]
