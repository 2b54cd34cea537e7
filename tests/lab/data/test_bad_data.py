"""Each misfit gets one error that says where, what was expected, what was found and what to do."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.ExifTags
import PIL.Image
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from PIL.PngImagePlugin import PngImageFile

import nt_models
from nt_core import BlockGraph, DataError, NeuroTrailsError
from nt_core.training import Data
from nt_lab.data import Normalisation, load, load_test
from nt_lab.data.decode import reader
from nt_lab.runs.folder import SPEC, UNFINISHED
from nt_lab.runs.interrupted import begun

SMALL = nt_models.wide_resnet(depth=10, width=1, classes=4, size=8, channels=3)
Make = Callable[..., Dataset]
Store = Callable[..., str]


def complaint(source: str, graph: BlockGraph = SMALL, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(Data(source=source, **settings), graph, seed=0)
    assert caught.value.__cause__ is None
    return str(caught.value)


def test_no_labels(stored: Store, labelled: Make) -> None:
    bare = labelled().remove_columns("label")
    message = complaint(stored(train=bare, test=bare))
    assert "split 'train': expected a column of class labels, found img (Image)" in message
    assert "--set data.label=COLUMN" in message


def test_labels_that_are_words(stored: Store, labelled: Make) -> None:
    words = labelled(4).remove_columns("label").add_column("label", list("abcd"))
    message = complaint(stored(train=words, test=words), label="label")
    assert "column 'label' does not hold class labels; found img (Image), label (string)" in message


def test_several_label_columns(stored: Store, labelled: Make) -> None:
    both = labelled(4).add_column("coarse", [0] * 4).cast_column("coarse", ClassLabel(num_classes=1))
    message = complaint(stored(train=both, test=both))
    assert "several columns hold class labels: label, coarse; choose by --set data.label=label" in message


def test_more_classes_than_outputs(stored: Store, labelled: Make) -> None:
    many = labelled(12, classes=7)
    message = complaint(stored(train=many, test=many))
    assert "column 'label' has 7 classes, the graph's output 4; --set graph.classes=7 would fit" in message


def test_fewer_classes_than_outputs_are_no_error(stored: Store, labelled: Make) -> None:
    few = labelled(12, classes=2)
    assert len(load(Data(source=stored(train=few, test=few)), SMALL, seed=0).train) == 12


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 1, 5, 2], "example 2: expected a label from 0 to 3, found 5; --set graph.classes=6 would fit"),
        ([0, 1, 2, -1], "example 3: expected a label from 0 to 3, found -1; use a labelled split"),
        ([0, None, 2, 1], "example 1: no label; use a labelled split"),
    ],
)
def test_labels_outside_the_classes(
    labels: list[int | None], said: str, stored: Store, labelled: Make
) -> None:
    wrong = labelled(4).remove_columns("label").add_column("label", labels)
    good = labelled(4)
    assert said in complaint(stored(train=good, test=wrong.cast_column("label", Value("int64"))))


@pytest.mark.parametrize(
    ("graph", "remedy"),
    [
        (
            nt_models.wide_resnet(depth=10, width=1, classes=4),
            "found 3×8×8 (channels × height × width); --set graph.size=8 --set graph.channels=3 would fit",
        ),
        (nt_models.mlp(inputs=64, classes=4), "expects 64 features, found 3×8×8"),
        (nt_models.mlp(inputs=(1, 8, 8), classes=4), "--set graph.inputs=[3,8,8] would fit"),
    ],
)
def test_images_of_another_size(graph: BlockGraph, remedy: str, parquet: str) -> None:
    assert remedy in complaint(parquet, graph)


def test_one_image_of_another_size(stored: Store, labelled: Make) -> None:
    mixed = datasets.concatenate_datasets([labelled(3), labelled(1, size=9)])
    assert "example 3: the graph expects 3×8×8" in complaint(stored(train=mixed, test=mixed))
    flat = [image.resize((4, 16)) for image in labelled(2)["img"]]
    same_area = Dataset.from_dict({"img": flat, "label": [0, 1]}, labelled(2).features)
    mixed = datasets.concatenate_datasets([labelled(3), same_area])
    message = complaint(stored(train=mixed, test=mixed), nt_models.mlp(inputs=192, classes=4))
    assert "example 3: expected 3×8×8" in message
    assert "as in the first example" in message


def test_grey_images_for_a_colour_network(stored: Store, labelled: Make) -> None:
    grey = labelled(4, channels=1)
    message = complaint(stored(train=grey, test=grey))
    assert "expects 3×8×8" in message
    assert "--set graph.size=8 --set graph.channels=1 would fit" in message


def test_images_of_16_bits_and_missing_ones(stored: Store, labelled: Make) -> None:
    features = labelled(1).features
    deep = Dataset.from_dict({"img": [np.full((8, 8), 300, np.uint16)], "label": [0]}, features)
    assert "example 0: expected 8-bit grey or colour, found an image of mode I;16" in complaint(
        stored(train=deep, test=deep)
    )
    missing = Dataset.from_dict({"img": [None, labelled(1)["img"][0]], "label": [0, 1]}, features)
    assert "example 0: no image" in complaint(stored(train=missing, test=missing))


def test_an_image_that_cannot_be_decoded(stored: Store, labelled: Make) -> None:
    broken = Dataset.from_dict(
        {"img": [{"bytes": b"not an image", "path": None}], "label": [0]}, labelled(1).features
    )
    message = complaint(stored(train=broken, test=broken))
    assert "example 0: cannot be decoded" in message


def test_no_images(stored: Store) -> None:
    features = Features(x=List(Value("float32")), label=ClassLabel(num_classes=2))
    rows = Dataset.from_dict({"x": [[1.0, 2.0], [3.0, 4.0]], "label": [0, 1]}, features)
    source = stored(train=rows, test=rows)
    assert "expected a column of images, found x (List), label (ClassLabel)" in complaint(source)
    assert "expects 3 features, found 2" in complaint(source, nt_models.mlp(inputs=3, classes=2))
    message = complaint(source, nt_models.mlp(inputs=2, classes=2), augment="crop")
    assert "data.augment: 'crop' is for images" in message


def test_vectors_that_are_not_finite(stored: Store) -> None:
    features = Features(x=List(Value("float32")), label=ClassLabel(num_classes=2))
    rows = Dataset.from_dict({"x": [[1.0, 2.0], [float("nan"), 4.0]], "label": [0, 1]}, features)
    message = complaint(stored(train=rows, test=rows), nt_models.mlp(inputs=2, classes=2))
    assert "example 1: expected a list of finite numbers" in message


def test_unknown_columns(parquet: str) -> None:
    assert "has no column 'labels'; did you mean 'label'?" in complaint(parquet, label="labels")
    assert "data.image" in complaint(parquet, image="label")


def test_unknown_splits(parquet: str) -> None:
    assert "data.train: no split 'trian'; did you mean 'train'?" in complaint(parquet, train="trian")
    assert "data.test: no split 'validation'; known: " in complaint(parquet, test="validation")
    assert "data.test: 'test[:x%]' is no split" in complaint(parquet, test="test[:x%]")


def test_an_empty_split(parquet: str) -> None:
    assert "data.test: split 'test[:0]' is empty" in complaint(parquet, test="test[:0]")


def test_sources_that_are_not_there(tmp_path: Path, parquet: str) -> None:
    assert "no folder" in complaint(str(tmp_path / "nothing"))
    assert "is a file; give the folder it lies in" in complaint(f"{parquet}/train.parquet")
    (tmp_path / "empty").mkdir()
    message = complaint(str(tmp_path / "empty"))
    assert "cannot be loaded" in message
    assert "\n" not in message


def test_a_damaged_folder(tmp_path: Path, parquet: str) -> None:
    file = Path(parquet) / "train.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    assert "cannot be loaded" in complaint(parquet)


@pytest.mark.parametrize(
    "error",
    [ConnectionError("Couldn't reach 'a/b' on the Hub\nlong story"), FileNotFoundError("no such dataset")],
)
def test_a_hub_that_does_not_answer(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    message = complaint("a/b")
    assert "check the name (owner/dataset) and the connection, or give 'digits' or a folder" in message
    assert "long story" not in message


def test_another_kind_of_data_than_the_run_was_trained_on(parquet: str) -> None:
    with pytest.raises(DataError, match="normalised for 1 channels, found 3"):
        load_test(Data(source=parquet), SMALL, Normalisation(mean=(0,), std=(1,)))


# From strangers.


def images_of(*items: dict[str, Any]) -> Dataset:
    features = Features(img=datasets.Image(), label=ClassLabel(num_classes=4))
    return Dataset.from_dict({"img": list(items), "label": [0] * len(items)}, features)


def read(item: dict[str, Any]) -> Any:
    return reader(images_of(item), "img", SMALL, "images")(np.zeros(1, np.int64))


def test_an_image_at_an_address_is_not_fetched() -> None:
    with pytest.raises(
        DataError, match=r"example 0: expected an image, found the address https://a\.b/c\.png"
    ):
        read({"bytes": None, "path": "https://a.b/c.png"})
    with pytest.raises(DataError, match="found the address zip"):
        read({"bytes": None, "path": "zip://a.png::b.zip"})


def test_an_image_is_measured_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch, labelled: Make) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("decoded")

    content = BytesIO()
    PIL.Image.new("RGB", (9000, 8000)).save(content, "PNG")
    monkeypatch.setattr(PngImageFile, "load", fail)
    with pytest.raises(DataError, match="expected an image of at most 67108864 pixels, found 9000 × 8000"):
        read({"bytes": content.getvalue(), "path": None})


def test_formats_that_start_programs_are_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.Popen", fail)
    header = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    with pytest.raises(DataError, match=r"cannot be decoded: expected an image \(BMP, GIF"):
        read({"bytes": header, "path": None})


def test_images_are_turned_upright(tmp_path: Path) -> None:
    picture = PIL.Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    exif = picture.getexif()
    exif[PIL.ExifTags.Base.Orientation] = 3
    picture.save(tmp_path / "a.png", exif=exif)
    (found,) = read({"bytes": None, "path": str(tmp_path / "a.png")})
    np.testing.assert_array_equal(found.transpose(1, 2, 0), np.asarray(picture)[::-1, ::-1])


def test_a_spec_in_a_folder_of_runs_cannot_name_a_file(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "run" / UNFINISHED).mkdir(parents=True)
    graph = f'{{name: "{tmp_path}/evil.py:graph"}}'
    (tmp_path / "run" / UNFINISHED / SPEC).write_text(f"graph: {graph}\n")
    with pytest.raises(NeuroTrailsError, match="no architecture"):
        begun(tmp_path / "run", None, None)
    assert not (tmp_path / "ran").exists()
