"""The tables of ``nt cost`` against what the papers print."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from typer.testing import CliRunner

from nt_lab.cli.main import app
from nt_lab.papers.costs import Line, lines, settings

FOUND = lines()


def line(method: str, setting: str = "WRN-28-10, CIFAR-100") -> Line:
    return next(line for line in FOUND if (line.setting, line.method) == (setting, method))


@pytest.mark.parametrize(
    ("method", "training", "inference"),
    [
        ("DST ensemble, M = 3, S = 0.8", 1.01, 1.01),
        ("EDST ensemble, M = 3, S = 0.8", 0.61, 1.01),
        ("EDST ensemble, M = 7, S = 0.9", 0.57, 1.17),
    ],
)
def test_freetickets_figures_come_out_of_the_graph(method: str, training: float, inference: float) -> None:
    relative = line(method).relative
    assert relative["flops_training"] == pytest.approx(training, abs=0.0055)
    assert relative["flops_inference"] == pytest.approx(inference, abs=0.0065)


def test_neurotrails_prints_figures_at_uniform_density() -> None:
    for method, printed, true in (
        ("NeuroTrails, M = 3, S = 0.8", 0.47, 0.6831),
        ("NeuroTrails, M = 5, S = 0.9", 0.37, 0.5020),
    ):
        relative = line(method).relative
        assert relative["flops_uniform_equivalent"] == pytest.approx(printed, abs=0.005)
        assert relative["flops_inference"] == pytest.approx(true, abs=1e-4)
    treenet = line("TreeNet, M = 3").relative
    assert treenet["weights_total"] == pytest.approx(2.9102, abs=1e-4)
    assert treenet["flops_inference"] == pytest.approx(2.3599, abs=1e-4)


def test_each_setting_relates_to_the_single_dense_network() -> None:
    assert len({setting.title for setting in settings()}) == len(settings())
    for setting in settings():
        first = line(setting.methods[0].name, setting.title)
        assert first.method == "single dense"
        assert set(first.relative.values()) == {1.0}
        assert (
            first.flops_training == 3 * first.flops_inference * setting.examples * setting.methods[0].length
        )


def test_nothing_of_a_weight_s_size_is_made() -> None:
    tracemalloc.start()
    try:
        lines()
        assert tracemalloc.get_traced_memory()[1] < 50e6  # one weight of LLaMA-350M has 131 MB
    finally:
        tracemalloc.stop()


def test_the_command_prints_all_of_it() -> None:
    run = CliRunner().invoke
    assert [each["method"] for each in json.loads(run(app, ["cost", "--json"]).stdout)] == [
        line.method for line in FOUND
    ]
    shown = run(app, ["cost"], env={"COLUMNS": "80"}).stdout
    assert all(len(text) <= 80 for text in shown.splitlines())
    assert "0.6831×" in shown
    assert "is the ratio of weights" in shown
