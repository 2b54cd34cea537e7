"""Classes are matched by name wherever other data meet a trained model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from hypothesis import given
from hypothesis import strategies as st

import nt_models
from nt_core import DataError, NeuroTrailsError, read_spec
from nt_core.training import Data, Normalisation
from nt_lab.data import load, load_test
from nt_lab.data.classes import by_name
from nt_lab.evaluation.evaluate import open_run
from nt_lab.training import train as lab

GRAPH = nt_models.mlp(inputs=2, hidden=(), classes=3)
NAMES = ("blue", "green", "red")
PLAIN = Normalisation(mean=(0.0, 0.0), std=(1.0, 1.0))

pytestmark = pytest.mark.filterwarnings("ignore:data .*no examples of")  # test splits lack classes here


def vectors(names: tuple[str, ...] | None, labels: list[int]) -> Dataset:
    """Vectors whose first feature is the place of the class's name among all names."""
    kind = Value("int64") if names is None else ClassLabel(names=list(names))
    of = names or NAMES
    columns = {"x": [[float(len(of[label])), 0.0] for label in labels], "label": labels}
    return Dataset.from_dict(columns, Features(x=datasets.Sequence(Value("float32")), label=kind))


def source(folder: Path, name: str, **splits: Dataset) -> Data:
    DatasetDict(splits).save_to_disk(folder / name)
    return Data(source=str(folder / name), image="x")


def spec(data: Data, **more: str) -> Any:
    fields = [f"data.source={data.source}", "data.image=x", "graph={name: mlp, inputs: 2, classes: 3}"]
    fields += ["plan.epochs=1", "training.batch_size=4", *(f"{key}={value}" for key, value in more.items())]
    return read_spec("single", nt_models.ARCHITECTURES, fields)


@given(st.permutations(range(5)), st.integers(1, 5), st.data())
def test_labels_follow_their_names(order: list[int], count: int, data: st.DataObject) -> None:
    known = tuple(f"class {number}" for number in range(5))
    names = tuple(known[number] for number in order[:count])
    labels = np.array(data.draw(st.lists(st.integers(-1, count - 1))), np.int64)
    graph = nt_models.mlp(inputs=2, hidden=(), classes=5)
    found = by_name(names, known, "data", graph, labels)
    assert [known[f] if f >= 0 else f for f in found] == [names[x] if x >= 0 else x for x in labels]
    numbers = tuple(name.removeprefix("class ") for name in names)  # names that are numbers need no names
    np.testing.assert_array_equal(by_name(numbers, None, "data", graph, labels), found)


def test_a_test_split_is_numbered_as_the_training_split(tmp_path: Path) -> None:
    both = {"train": vectors(NAMES, [0, 1, 2, 2]), "test": vectors(("red", "blue"), [0, 1, 0])}
    split = load(source(tmp_path, "both", **both), GRAPH, seed=0)
    assert split.classes == NAMES
    assert [labels.tolist() for _, labels in split.test.epoch(0, 9)] == [[2, 0, 2]]


def test_a_run_is_tested_by_names(tmp_path: Path, fake_backend: Any) -> None:
    data = source(tmp_path, "data", train=vectors(NAMES, [0, 1, 2, 2]), test=vectors(NAMES, [2, 1]))
    record = lab.train(spec(data), tmp_path / "run", backend=fake_backend)
    assert record["data"]["classes"] == list(NAMES)
    assert record["data"]["preprocessing"]["high"] == [5.0, 0.0]
    run = open_run(tmp_path / "run", backend=fake_backend)
    lacking = source(tmp_path, "lacking", test=vectors(("green", "red"), [0, 1]))
    assert [labels.tolist() for _, labels in run.test_split(source=lacking.source).epoch(0, 9)] == [[1, 2]]
    more = source(tmp_path, "more", test=vectors(("green", "pink", "red", "teal"), [0, 2, 0]))
    assert [labels.tolist() for _, labels in run.test_split(source=more.source).epoch(0, 9)] == [[1, 2, 1]]
    wrong = source(tmp_path, "wrong", test=vectors(("green", "pink", "teal"), [0, 2, 1]))
    with pytest.raises(DataError, match=r"does not know the classes 'pink', 'teal'; it knows 'blue'"):
        run.test_split(source=wrong.source)
    numbers = source(tmp_path, "numbers", test=vectors(None, [2, 0]))
    assert [labels.tolist() for _, labels in run.test_split(source=numbers.source).epoch(0, 9)] == [[2, 0]]


def test_a_run_without_names_is_not_tested_on_some_of_them(tmp_path: Path) -> None:
    whole = source(tmp_path, "whole", test=vectors(NAMES, [2, 0]))
    some = source(tmp_path, "some", test=vectors(NAMES[1:], [1, 0]))
    found = load_test(whole, GRAPH, PLAIN)
    assert [labels.tolist() for _, labels in found.epoch(0, 9)] == [[2, 0]]
    assert [labels.tolist() for _, labels in load_test(some, GRAPH, PLAIN, own=True).epoch(0, 9)] == [[1, 0]]
    with pytest.raises(DataError, match=r"2 classes, 'green', 'red', for a model of 3 whose names are not"):
        load_test(some, GRAPH, PLAIN)


def test_an_interrupted_run_does_not_go_on_with_other_classes(tmp_path: Path, fake_backend: Any) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise NeuroTrailsError("interrupted")

    run = spec(source(tmp_path, "data", train=vectors(NAMES, [0, 1, 2]), test=vectors(NAMES, [2])))
    with pytest.raises(NeuroTrailsError, match="interrupted"):
        lab.train(run, tmp_path / "run", backend=lambda: replace(fake_backend(), train=interrupted))
    renamed = ("blue", "grey", "red")
    source(tmp_path, "data", train=vectors(renamed, [0, 1, 2]), test=vectors(renamed, [2]))
    with pytest.raises(DataError, match=r"began \(new: 'grey'; missing: 'green'\); restore them"):
        lab.train(run, tmp_path / "run", backend=fake_backend)
    source(tmp_path, "data", train=vectors(NAMES, [0, 1, 2]), test=vectors(NAMES, [2]))
    lab.train(run, tmp_path / "run", backend=fake_backend)
    assert {file.name for file in (tmp_path / "run").iterdir()} == {
        "config.json", "model.safetensors", "history.jsonl", "spec.yaml",
    }  # fmt: skip
