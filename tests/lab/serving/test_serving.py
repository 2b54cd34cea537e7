"""Export, predict, bench: what a user does with a run on a machine without a framework."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import nt_cpu
import nt_models
from nt_core import EnsembleSpec, NeuroTrailsError
from nt_core.checkpoint import save_checkpoint
from nt_lab.cli.main import app
from nt_lab.evaluation import evaluate as evaluation
from nt_lab.serving import exports, latency
from nt_lab.serving import serve as serving
from nt_lab.serving.runtimes import RUNTIMES, Dense


def nt(*arguments, code=0):
    found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert found.exit_code == code, found.output
    return found


def panel(found):
    """What an error's panel says, its lines joined."""
    return " ".join(found.stderr.replace("│", " ").split())


@pytest.fixture(scope="session")
def packed(run, tmp_path_factory):
    file = tmp_path_factory.mktemp("packed") / "model.nt"
    found = nt("export", run, file)
    assert "MB, loaded again by nt_cpu" in found.stdout
    return file


def test_a_packed_run_predicts_as_the_backend_that_trained_it(run, packed):
    engine = nt_cpu.load(packed)
    found = serving.predict(engine, serving.data_of(engine, packed, None))
    truth = evaluation.evaluate(run)
    assert found.metrics.accuracy == truth.accuracy
    assert found.metrics.nll == pytest.approx(truth.nll, rel=1e-5)
    assert found.metrics.disagreement == pytest.approx(truth.disagreement)


@pytest.mark.parametrize("which", ["run", "packed"])
def test_predict_prints_and_writes_every_prediction(which, request, tmp_path):
    served = request.getfixturevalue(which)
    shown = nt("predict", served, "--limit", 50, "--out", tmp_path / "p.csv")
    assert "and 45 more" in shown.stdout
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 50
    for row in rows:
        probabilities = np.array([float(row[f"p{c}"]) for c in range(10)])
        assert probabilities.sum() == pytest.approx(1, abs=1e-5)
        assert int(row["prediction"]) == probabilities.argmax()
        assert float(row["probability"]) == pytest.approx(probabilities.max())
        assert float(row["members_agreeing"]) * 3 == pytest.approx(round(float(row["members_agreeing"]) * 3))
    found = json.loads(nt("predict", served, "--limit", 50, "--json").stdout)
    assert [each["prediction"] for each in found["predictions"]] == [int(row["prediction"]) for row in rows]
    assert 0 <= found["metrics"]["accuracy"] <= 1


def test_an_onnx_file_is_run_and_compared(run, tmp_path):
    found = json.loads(nt("export", run, tmp_path / "model.onnx", "--to", "onnx", "--json").stdout)
    assert found["differs"] < 1e-5
    assert found["checked"].startswith("ONNX Runtime")
    assert found["bytes"] == (tmp_path / "model.onnx").stat().st_size


def test_without_its_package_onnx_says_what_to_install(run, tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "installed", lambda _: False)
    shown = nt("export", run, tmp_path / "model.onnx", "--to", "onnx", code=2)
    assert "neurotrails[onnx]" in panel(shown)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch.compile, of itself
@pytest.mark.parametrize("name", [name for name, runtime in RUNTIMES.items() if runtime.present])
def test_every_dense_runtime_computes_the_same(run, name):
    engine = nt_cpu.compile(run)
    with Dense(serving.load_checkpoint(run)) as dense:
        call = RUNTIMES[name].start(dense, 1)
        for batch in (1, 3, 1):
            x = serving.examples(engine.spec, batch)
            truth = engine.heads(x)
            np.testing.assert_allclose(call(x), truth, rtol=0, atol=1e-5 * np.abs(truth).max())


def test_what_is_not_installed_is_said(run, tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "installed", lambda name: name != "onnxruntime")
    assert (
        "not checked: onnxruntime is not installed"
        in nt("export", run, tmp_path / "m.onnx", "--to", "onnx").stdout
    )


def test_bench_measures_in_turn_and_compares(run):
    names = [name for name in ("torch", "onnxruntime") if RUNTIMES[name].present]
    options = ["--batches", "1,3", "--seconds", 0, "--runtimes", ",".join(names)]
    found = json.loads(nt("bench", run, *options, "--json").stdout)
    assert [(line["batch"], line["runtime"]) for line in found] == [
        (batch, name) for batch in (1, 3) for name in ("nt_cpu", *names)
    ]
    assert all(line["agrees"] and line["median"] <= line["p95"] for line in found)
    assert all(line["calls"] >= latency.LEAST_VISITS for line in found)
    sparse, dense = found[:2]
    assert sparse["flops"] < dense["flops"]
    assert dense["differs"] < 1e-5
    shown = nt("bench", run, *options)
    assert "batch 3" in shown.stdout
    assert "agrees: no probability differs by more than" in shown.stdout


def test_bench_of_a_packed_file_says_that_nothing_was_compared(packed):
    shown = nt("bench", packed, "--batches", "1", "--seconds", 0, "--runtimes", "torch")
    assert "not compared: a packed file has no dense weights" in " ".join(shown.stdout.split())


def test_a_packed_file_is_compared_with_its_run(run, packed, tmp_path):
    options = ["--batches", "2", "--seconds", 0, "--runtimes", "torch", "--json"]
    found = json.loads(nt("bench", packed, "--run", run, *options).stdout)
    assert [line["agrees"] for line in found] == [True, True]
    assert found[1]["differs"] < 1e-5
    assert found[0]["flops"] < found[1]["flops"]
    spec = EnsembleSpec(graph=nt_models.mlp(inputs=4, hidden=(), classes=2))
    save_checkpoint(tmp_path, serving.untrained(spec))
    assert "its spec is not that of" in panel(nt("bench", packed, "--run", tmp_path, *options, code=2))


def test_a_runtime_that_disagrees_is_an_error(run, monkeypatch):
    start = RUNTIMES["torch"].start
    wrong = RUNTIMES["torch"].__class__(
        packages=("torch",), start=lambda *given: lambda x: start(*given)(x) * 2
    )
    monkeypatch.setattr(serving, "RUNTIMES", {"torch": wrong})
    shown = nt("bench", run, "--batches", "1", "--seconds", 0, "--runtimes", "torch", code=4)
    assert "no: " in shown.stdout


def test_bad_requests_are_refused(run, tmp_path):
    assert "expected numbers like 1,16,64" in panel(nt("bench", run, "--batches", "one", code=2))
    assert "expected at least 1 example, found 0" in panel(nt("bench", run, "--batches", "1,0", code=2))
    out = tmp_path / "absent" / "p.csv"
    assert "in a folder that exists" in panel(nt("predict", run, "--out", out, code=2))
    assert "expected some of torch" in panel(nt("bench", run, "--runtimes", "tensorrt", code=2))
    assert "is this a run's folder?" in panel(nt("predict", tmp_path / "absent", code=2))
    (tmp_path / "text.nt").write_text("hello")
    assert "not a safetensors file" in panel(nt("predict", tmp_path / "text.nt", code=2))
    engine = nt_cpu.compile(run)
    found = serving.predict(engine, serving.data_of(engine, Path(run), None))
    with pytest.raises(NeuroTrailsError, match="cannot be written"):
        found.write_csv(tmp_path / "absent" / "p.csv")


def test_latency_is_the_median_of_ratios_turn_by_turn():
    slow, fast = (
        latency.Latency(batch=4, visits=visits, calls=visits) for visits in ((2.0, 8.0, 3.0), (1.0, 2.0, 3.0))
    )
    assert fast.times_faster(slow) == 2.0
    assert slow.times_faster(fast) == 0.5
    assert (fast.mean, fast.median, fast.throughput) == (2.0, 2.0, 2.0)
