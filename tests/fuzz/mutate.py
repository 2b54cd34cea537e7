"""Changes that keep a file's form: another value in JSON, another number in YAML, another op in a program."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from random import Random
from typing import Any, Final

from tests.fuzz.programs import hostile, program_of, tensors_of

NUMBER: Final = re.compile(rb"-?\d+(\.\d+)?")
NUMBERS: Final = (
    b"0",
    b"-1",
    b"1.5",
    b"1e999",
    b"4097",
    b"65536",
    b"2147483648",
    b"9223372036854775808",
    b"9" * 90,
)
VALUES: Final = (
    None,
    True,
    0,
    -1,
    1.5,
    2**31,
    2**63,
    10**90,
    "",
    "x",
    "\0",
    [],
    {},
    [[]],
    {"kind": "x"},
    float("inf"),
)
WORDS: Final = (
    0,
    -1,
    1,
    2,
    15,
    16,
    17,
    127,
    4096,
    65536,
    1 << 20,
    1 << 28,
    1 << 40,
    (1 << 63) - 1,
    -(1 << 63),
)


def mutate(data: bytes, random: Random) -> bytes:
    """Return a file of several parts with one of them changed."""
    parts = data.split(b"\0", 2)
    if len(parts) == 3 and random.random() < 0.5 and (other := _other_program(parts[1], parts[2], random)):
        return b"\0".join((parts[0], *other))
    which = random.randrange(len(parts))
    part = parts[which]
    try:
        parts[which] = json.dumps(_other_value(json.loads(part), random)).encode()
    except (ValueError, RecursionError):
        parts[which] = _other_word(part, random) if which == 2 else _other_number(part, random)
    return b"\0".join(parts)


def _other_program(header: bytes, body: bytes, random: Random) -> tuple[bytes, bytes] | None:
    """Change a packed file's program, as long as it has a program's form; None if it is none."""
    try:
        return tensors_of(hostile(program_of(header, body), random))
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def _other_value(tree: Any, random: Random) -> Any:
    """Replace, leave out or move one value of a tree."""
    places = list(_places(tree))
    if not places:
        return random.choice(VALUES)
    holder, key = random.choice(places)
    match random.randrange(4):
        case 0:
            del holder[key]
        case 1:
            other, from_key = random.choice(places)
            holder[key] = json.loads(json.dumps(other[from_key])) if from_key in _keys(other) else None
        case _:
            holder[key] = random.choice(VALUES)
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key in _keys(tree):
        yield tree, key
        yield from _places(tree[key])


def _keys(tree: Any) -> list[Any]:
    return list(tree) if isinstance(tree, dict) else list(range(len(tree))) if isinstance(tree, list) else []


def _other_number(text: bytes, random: Random) -> bytes:
    found = list(NUMBER.finditer(text))
    if not found:
        return text
    place = random.choice(found)
    return text[: place.start()] + random.choice(NUMBERS) + text[place.end() :]


def _other_word(content: bytes, random: Random) -> bytes:
    if len(content) < 8:
        return content
    at = random.randrange(len(content) // 8) * 8
    old = int.from_bytes(content[at : at + 8], "little", signed=True)
    new = random.choice([*WORDS, max(old - 1, -(1 << 63)), min(old + 1, (1 << 63) - 1)])
    return content[:at] + new.to_bytes(8, "little", signed=True) + content[at + 8 :]
