"""Data of people's own kinds, and runs of their own loops, in both backends."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import nt_models
from nt_core import PRESETS, DataError, EnsembleSpec, NeuroTrailsError, OneRun
from nt_core.runs import TrainedOn
from nt_core.training import SGD, Arrays, Data, Preprocessing, Training
from nt_lab.cli.main import app
from nt_lab.data import load

SPEC = PRESETS["neurotrails"](nt_models.mlp(inputs=6, hidden=(8, 8), classes=3)).replace(
    plan=OneRun(epochs=2)
)
RECIPE = Training(batch_size=8, optimizer=SGD(lr=0.1))
DIGITS = nt_models.mlp(inputs=64, hidden=(8, 8), classes=10)


def examples(count=20, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 6)).astype(np.float32), rng.integers(0, 3, count)


def weights(backend, data, **how):
    trained = backend.train(SPEC, RECIPE, data, seed=3, test=examples(6, 1), **how)
    assert trained.metrics.count == 6
    return backend.checkpoint(trained.model).values


def expect_equal(found, wanted):
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_arrays_train_as_the_batches_of_them(backend):
    inputs, labels = examples()
    wanted = weights(backend, Arrays(inputs=inputs, labels=labels, shuffle_seed=3))
    expect_equal(weights(backend, (inputs.astype(np.float64), labels.astype(np.int32))), wanted)


def test_arrays_that_do_not_fit_are_refused_by_name(backend):
    inputs, labels = examples()
    for data, said in (
        ((inputs[:, :5], labels), r"expected inputs of shape \(examples, 6\), found \(20, 5\)"),
        ((inputs, labels[:5]), "as many labels as inputs"),
        ((inputs, labels[:, None]), r"expected labels as whole numbers of shape \(20,\)"),
        ((inputs, np.eye(3)[labels]), "expected labels as whole numbers"),
        ((inputs, labels + 1), "expected labels from 0 to 2, found 3"),
        ((inputs, labels, labels), "expected inputs and labels, found 3 arrays"),
        ({"x": inputs}, "found dict"),
        ("digits", "found str"),
    ):
        with pytest.raises(DataError, match=said):
            backend.train(SPEC, RECIPE, data)
        with pytest.raises(DataError, match=said):
            backend.evaluate(backend.compile(SPEC), data)
    images = EnsembleSpec(graph=nt_models.wide_resnet(depth=10, width=1, classes=3, size=8, channels=1))
    with pytest.raises(DataError, match="normalise pixels first"):
        backend.train(images, RECIPE, (np.zeros((4, 1, 8, 8), np.uint8), np.zeros(4, int)))


def nt(*arguments, code=0):
    found = CliRunner().invoke(app, [str(each) for each in arguments], env={"COLUMNS": "200"})
    assert found.exit_code == code, found.output
    return found


@pytest.mark.filterwarnings("ignore:.*NumPy computes instead")
def test_a_run_of_ones_own_loop_is_a_run(backend, tmp_path):
    spec = PRESETS["neurotrails"](DIGITS)
    model, split = backend.compile(spec), load(Data(source="digits"), DIGITS, seed=0)
    metrics = backend.evaluate(model, split.test)
    epochs = [{"loss": np.float32(2.0), **metrics.summary()}, {"loss": 1.0, **metrics.summary()}]
    told = {"steps": 10, "examples": np.int64(100), "history": epochs, "name": "mine [1]"}
    backend.save_run(tmp_path / "run", model, metrics=metrics, data=split, **told)
    found = json.loads(nt("evaluate", tmp_path / "run", "--json", "--backend", backend.__name__[3:]).stdout)
    assert found["accuracy"] == metrics.accuracy
    (row,) = json.loads(nt("compare", tmp_path / "run", "--json").stdout)
    assert (row["name"], row["backend"].partition("/")[0]) == ("mine [1]", backend.__name__[3:])
    assert row["flops_training"] > 0
    assert "mine [1]" in nt("compare", tmp_path / "run").stdout
    events = json.loads(nt("history", tmp_path / "run", "--json").stdout)[str(tmp_path / "run")]
    assert [(event["epoch"], event["step"], event["loss"]) for event in events] == [(1, 5, 2.0), (2, 10, 1.0)]
    predicted = json.loads(nt("predict", tmp_path / "run", "--limit", 5, "--json").stdout)
    assert len(predicted["predictions"]) == 5
    with pytest.raises(NeuroTrailsError, match="holds a run already"):
        backend.save_run(tmp_path / "run", model, metrics=metrics)
    backend.save_run(tmp_path / "run", model, metrics=metrics.to_dict(), overwrite=True)
    (row,) = json.loads(nt("compare", tmp_path / "run", "--json").stdout)
    assert (row["name"], row["flops_training"]) == ("run", 0)
    assert "does not say what it was trained on" in " ".join(
        nt("evaluate", tmp_path / "run", code=2).stderr.replace("│", " ").split()
    )
    assert "how inputs are normalised" in " ".join(
        nt("evaluate", tmp_path / "run", "--data", "digits", code=2).stderr.replace("│", " ").split()
    )


def test_what_a_run_is_told_is_checked(backend, tmp_path):
    model = backend.compile(SPEC)
    metrics = backend.evaluate(model, examples())
    small = Preprocessing.of_images((1, 1, 5), mean=(0.0,), std=(1.0,))
    for told, said in (
        ({}, "metrics: expected what evaluate returns"),
        ({"metrics": {"accuracy": 1.0}}, "metrics: expected nll, perplexity"),
        ({"metrics": metrics, "data": 3}, "data: expected a TrainedOn"),
        ({"metrics": metrics, "history": [{"model": model}]}, r"history\.model: expected text"),
        ({"metrics": metrics, "classes": ["a", "a", "b"]}, "distinct names"),
        ({"metrics": metrics, "classes": list("abcd")}, "4 names for 3 classes"),
        ({"metrics": metrics, "preprocessing": small}, "examples of the network's input shape"),
    ):
        with pytest.raises(NeuroTrailsError, match=said):
            backend.save_run(tmp_path / "run", model, **told)
        assert not (tmp_path / "run").exists()
    trained = backend.train(SPEC, RECIPE, examples(), test=examples(6, 1))
    backend.save_run(tmp_path / "run", trained, data=TrainedOn(classes=("a", "b", "c")))
    (row,) = json.loads(nt("compare", tmp_path / "run", "--json").stdout)
    assert (row["accuracy"], row["seconds"]) == (trained.metrics.accuracy, trained.seconds)
