from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner, Result

from nt_lab.cli.main import app


def nt(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False, env={"COLUMNS": "200"})


def test_both_wrappings_and_every_number_of_ranks_are_shown() -> None:
    found = json.loads(
        nt("scale", "llama_70b", "--preset", "neurotrails", "--ranks", "8,64", "--json").stdout
    )
    assert [(line["wrap"], line["ranks"]) for line in found] == [
        ("ddp", 8), ("ddp", 64), ("fsdp2", 8), ("fsdp2", 64),
    ]  # fmt: skip
    assert {line["parameters"] for line in found} == {160_200_318_976}
    shown = nt("scale", "llama_70b", "--preset", "neurotrails", "--ranks", "8,64").stdout
    assert "160 G parameters in 3 heads and a backbone (69 G in one dense network)" in shown
    assert re.findall(r"^(DDP|FSDP2) +(\d+) ", shown, re.M) == [
        ("DDP", "8"), ("DDP", "64"), ("FSDP2", "8"), ("FSDP2", "64"),
    ]  # fmt: skip


def test_what_fits_depends_on_the_device() -> None:
    case = ("scale", "llama_70b", "--preset", "neurotrails", "--wrap", "fsdp2", "--dtype", "mixed")
    assert "does not fit" in nt(*case, "--ranks", "8").stdout
    assert "does not fit" not in nt(*case, "--ranks", "64").stdout
    assert "does not fit" in nt(*case, "--ranks", "64", "--memory", "40").stdout


@pytest.mark.parametrize(
    ("changes", "states", "dtype"),
    [
        ([], 1, "float32"),
        (["training.optimizer={kind: sgd, momentum: 0}"], 0, "float32"),
        (["training.optimizer={kind: adam}", "training.precision=bfloat16"], 2, "mixed"),
    ],
)
def test_optimiser_and_arithmetic_are_the_spec_s(changes: list[str], states: int, dtype: str) -> None:
    overrides = [part for change in changes for part in ("--set", change)]
    found = json.loads(nt("scale", "neurotrails", "--wrap", "ddp", "--json", *overrides).stdout)[0]
    assert found["device"]["optimizer"] == states * found["device"]["parameters"]
    assert found["dtype"] == dtype
    asked = json.loads(
        nt("scale", "neurotrails", "--wrap", "ddp", "--json", "--dtype", "bfloat16", *overrides).stdout
    )[0]
    assert asked["device"]["parameters"] == 2 * asked["parameters"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rigl", "--ranks", "8,x"), "--ranks: expected numbers of processes"),
        (("rigl", "--ranks", "0"), "ranks: expected at least 1, found 0"),
        (("cht", "--wrap", "fsdp2"), "weights are sharded, but cannistraci_hebb reads more than one part"),
    ],
)
def test_mistakes_are_shown(arguments: tuple[str, ...], message: str) -> None:
    result = nt("scale", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        ("batch_ensemble", "in members that share every block"),
        ("single", "in 1 head ("),
        ("edst", "in 1 head ("),
    ],
)
def test_what_is_trained_is_said(spec: str, shown: str) -> None:
    assert shown in nt("scale", spec).stdout
