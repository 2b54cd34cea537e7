from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from nt_lab.cli.main import app
from nt_lab.runs.folder import RunFolder


def test_a_sweep_through_ray_is_the_sweep_without_it(tmp_path: Path) -> None:
    arguments = ["sweep", "single", "--over", "data.train", "--values", "'train[:64]',nothing",
                 "--device", "cpu", "--set", "graph={name: mlp, inputs: [1, 8, 8], hidden: [4], classes: 10}",
                 "--set", "plan={kind: one_run, steps: 2}", "--backend", "torch", "--json"]  # fmt: skip

    def swept(name: str, *more: str) -> list[dict[str, object]]:
        found = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / name), *more])
        assert found.exit_code == 3, found.output
        rows: list[dict[str, object]] = json.loads(found.stdout)["runs"]
        return rows

    local, ray = swept("local"), swept("ray", "--runner", "ray", "--jobs", "2")
    assert [row["status"] for row in ray] == ["finished", "failed"]
    assert ray[1]["error"] == local[1]["error"]
    assert (ray[0]["nll"], ray[0]["accuracy"]) == (local[0]["nll"], local[0]["accuracy"])
    assert RunFolder(Path(str(ray[0]["folder"]))).record()["backend"] == "torch"
    assert [row["status"] for row in swept("ray", "--runner", "ray")] == ["finished", "failed"]
