"""What declares too much is refused before it is made; what can be declared can be costed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import nt_models
from nt_core import PRESETS, BlockGraph, GraphError, NeuroTrailsError
from nt_core.cost import cost
from nt_core.errors import CheckpointError, SpecError, nearest
from nt_core.files import ParseError, parse_json, parse_yaml, read_json, read_text
from nt_core.files.parsing import MOST_DEPTH, MOST_DIGITS
from nt_core.graph import Features
from nt_core.spec import EnsembleSpec
from nt_core.structure import Fission, Independent
from nt_core.structure import memory as module
from nt_core.structure.memory import expect_memory, machine_bytes
from nt_core.values import LARGEST, SHOWN, shown

SMALL = nt_models.mlp(inputs=4, hidden=(3, 3), classes=2)


def test_a_network_of_many_billion_weights_is_costed_but_not_made() -> None:
    graph = nt_models.llama(blocks=80, width=8192, hidden=28672, heads=64, vocabulary=32000, length=4096)
    spec = PRESETS["neurotrails"](graph)
    assert cost(spec).weights_active > 10**10
    with pytest.raises(
        NeuroTrailsError, match=r"^a: its weights take [\d,.]+ GB .* declare a smaller network$"
    ):
        expect_memory(spec.layout, "a")


def test_memory_is_refused_only_where_it_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = PRESETS["single"](SMALL).layout
    needed = 4 * sum(placed.weight.size for placed in layout.weights)
    monkeypatch.setattr(module, "machine_bytes", lambda: needed)
    expect_memory(layout, "a")
    monkeypatch.setattr(module, "machine_bytes", lambda: needed - 1)
    with pytest.raises(NeuroTrailsError):
        expect_memory(layout, "a")
    assert machine_bytes() > 10**8


@pytest.mark.parametrize(
    "declare",
    [
        lambda: nt_models.wide_resnet(depth=10**12, width=1, classes=2),
        lambda: nt_models.mlp(inputs=4, hidden=(1,) * 200, classes=2),
        lambda: BlockGraph.from_dict(nt_models.mlp(inputs=4, hidden=(1,) * 200, classes=2).to_dict()),
    ],
)
def test_a_graph_of_too_many_ops_is_refused(
    declare: Callable[[], BlockGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nt_core.graph.blocks.MOST_OPS", 300)
    with pytest.raises(GraphError, match="graph: expected at most 300 ops, found 3"):
        declare()


@pytest.mark.parametrize("structure", [Independent(count=2), Fission(count=2)], ids=str)
def test_members_of_too_many_ops_are_refused(
    structure: Independent | Fission, monkeypatch: pytest.MonkeyPatch
) -> None:
    ops = sum(1 for _ in SMALL.nodes())
    monkeypatch.setattr("nt_core.graph.blocks.MOST_OPS", ops)
    assert EnsembleSpec(graph=SMALL).members == 1
    with pytest.raises(GraphError, match=f"structure: 2 .*: expected at most {ops} ops"):
        structure.layout(SMALL)


@pytest.mark.parametrize("parse", [parse_json, parse_yaml])
def test_depth_and_digits_are_bounded_exactly(parse: Callable[[str], object]) -> None:
    nested = "[" * MOST_DEPTH + "]" * MOST_DEPTH
    assert parse(nested)
    assert parse("9" * MOST_DIGITS) == 10**MOST_DIGITS - 1
    for text in (f"[[{nested}]]", "9" * (MOST_DIGITS + 1)):
        with pytest.raises(ParseError):
            parse(text)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    found: list[str] = []

    def read() -> None:
        try:
            read_json(tmp_path / "config.json", "is it?")
        except CheckpointError as error:
            found.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(20)
    assert ["found a pipe or a device" in each for each in found] == [True]


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 10)
    assert read_text(tmp_path / "a", 10) == "x" * 10
    with pytest.raises(OSError, match="expected at most 9 bytes"):
        read_text(tmp_path / "a", 9)


def test_errors_stay_short() -> None:
    assert len(shown("x" * 10**6)) == SHOWN
    assert shown(10**5000) == "a large int"
    assert nearest("x" * 10**6, ["y" * 10**6, "short"]) == "; known: short"
    assert len(nearest("x", [f"name{i}" for i in range(10**5)])) < 2000


def test_a_count_has_an_end() -> None:
    with pytest.raises(
        SpecError, match=r"features\.count: expected a number of at most 1099511627776; found"
    ):
        Features(count=10**90)
    assert Features(count=LARGEST).count == LARGEST
