"""The files of a folder, each in one split, whatever folders and classes are called."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from PIL import Image

import nt_models
from nt_core import BlockGraph, DataError
from nt_core.errors import NeuroTrailsWarning
from nt_core.training import Data, Text
from nt_lab.data import load, load_test
from nt_lab.data.files import Pictures, Tables, find_files
from nt_lab.data.sources import open_source

WORDS = nt_models.llama(blocks=1, width=8, hidden=8, heads=2, vocabulary=256, length=8)


def network(classes: int, channels: int = 3) -> BlockGraph:
    return nt_models.mlp(inputs=(channels, 4, 4), hidden=(2,), classes=classes)


def draw(root: Path, *paths: str, mode: str = "RGB", size: tuple[int, int] = (4, 4)) -> str:
    """Write pictures; those of one class have one colour."""
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        shade = sum(file.parent.name.encode()) % 256
        Image.new("RGB", size, (shade,) * 3).convert(mode).save(file)
    return str(root)


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def listed(splits: Mapping[str, Any]) -> dict[str, list[str]]:
    return {split: [str(file) for file in files] for split, files in splits.items()}


CLASSES = ("apple", "train", "test tube", "val-d'or", "cat [1]", "what?", "*")


@pytest.mark.parametrize(
    "folder", ["plain", "data[set]", "a*b", "is it?", "training", "x/test/y", "[!a]{b,c}"]
)
def test_classes_and_folders_may_be_called_anything(folder: str, tmp_path: Path) -> None:
    root = tmp_path / folder
    source = draw(
        root, *(f"{split}/{name}/{i}.png" for split in ("train", "test") for name in CLASSES for i in "12")
    )
    split = load(Data(source=source), network(7), seed=0)
    splits = open_source(source)
    for part, count in (("train", 14), ("test", 14)):
        assert len(splits[part]) == count
        for row in splits[part].cast_column("image", datasets.Image(decode=False)):
            path = Path(row["image"]["path"]).relative_to(root)
            assert path.parts[0] == part
            assert path.parts[1] == sorted(CLASSES)[row["label"]]
    np.testing.assert_array_equal(np.bincount(split.train.labels), [2] * 7)
    np.testing.assert_array_equal(np.bincount(split.test.labels), [2] * 7)


def test_a_folder_of_classes_alone_is_one_split_even_if_a_class_is_called_train(tmp_path: Path) -> None:
    source = draw(tmp_path, *(f"{name}/{i}.png" for name in CLASSES for i in "1234"))
    with pytest.raises(DataError, match=r"no split 'test'.*--set data\.held_out=0\.2"):
        load(Data(source=source), network(7), seed=0)
    split = load(Data(source=source, held_out=0.25), network(7), seed=0)
    np.testing.assert_array_equal(np.bincount(split.train.labels), [3] * 7)
    np.testing.assert_array_equal(np.bincount(split.test.labels), [1] * 7)


@pytest.mark.parametrize(
    ("paths", "splits", "classes"),
    [
        (["a/1.png", "b/2.JPG"], {"train": ["a/1.png", "b/2.JPG"]}, ("a", "b")),
        (["pets/val/a/1.png", "pets/train/a/2.png"], {"train": 1, "validation": 1}, ("a",)),
        (["training/a/1.png", "eval/b/2.png"], {"train": 1, "test": 1}, ("a", "b")),
        (["train2017/a/1.png", "my-test/b/2.png"], {"train": 1, "test": 1}, ("a", "b")),
        (["train/a/1.png", "test/a/1.png", "foggy/a/1.png"], {"train": 1, "test": 1, "foggy": 1}, ("a",)),
        (["train/1.png", "test/2.png"], {"train": 1, "test": 1}, ()),
        (["1.png", "2.png"], {"train": 2}, ()),
        (["train/a/1.png", "test/2.png"], {"train": 1, "test": 1}, ("a",)),
        (["a/1.png", ".cache/b/2.png", "a/.3.png", "a/notes.txt", "2.png"], {"train": ["a/1.png"]}, ("a",)),
        (["trained/1.png", "tests/2.png"], {"train": 2}, ("tests", "trained")),
    ],
)
def test_pictures_are_divided_by_folders(
    paths: list[str], splits: dict[str, Any], classes: tuple[str, ...], tmp_path: Path
) -> None:
    found = find_files(touch(tmp_path, *paths))
    assert isinstance(found, Pictures)
    assert found.classes == classes
    for split, expected in splits.items():
        files = listed(found.splits)[split]
        assert (len(files) if isinstance(expected, int) else files) == expected
    assert found.splits.keys() == splits.keys()


@pytest.mark.parametrize(
    "paths",
    [
        ["train/a/images/1.png", "train/b/images/2.png"],
        ["animals/cat/1.png", "plants/oak/2.png"],
        ["a/1.png", "a/more/2.png", "b/3.png"],
        ["train/a/1.png", "train/2.png"],
    ],
)
def test_nested_folders_of_pictures_are_refused(paths: list[str], tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"can be meant in several ways; expected class/picture or split/class"
    ):
        find_files(touch(tmp_path, *paths))


@pytest.mark.parametrize(
    ("paths", "splits"),
    [
        (["x.parquet", "y.parquet"], {"train": ["x.parquet", "y.parquet"]}),
        (
            ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test.parquet"],
            {"train": 2, "test": 1},
        ),
        (["data/fold_1-00000-of-00001.parquet", "data/val-00000-of-00001.parquet"], {"fold_1": 1, "val": 1}),
        (["en/c4-train.00000-of-01024.json", "en/c4-validation.00000.json"], {"train": 1, "validation": 1}),
        (["test/part-0.csv", "train/part-0.csv", "dataset_info.json"], {"train": 1, "test": 1}),
        (["contest.csv", "trainer.csv", "a.png"], {"train": 2}),
        (["test/evaluation_1.jsonl", "training set.jsonl"], {"train": 1, "test": 1}),
    ],
)
def test_files_of_data_are_divided_by_words_in_their_names(
    paths: list[str], splits: dict[str, Any], tmp_path: Path
) -> None:
    found = find_files(touch(tmp_path / "the train [set]", *paths))
    assert isinstance(found, Tables)
    assert {split: len(files) for split, files in found.splits.items()} == {
        split: files if isinstance(files, int) else len(files) for split, files in splits.items()
    }


def test_a_file_in_two_splits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'test/train-1\.csv' names several splits: test, train"):
        find_files(touch(tmp_path / "names", "test/train-1.csv"))
    draw(tmp_path / "links", "train/a/1.png", "train/b/1.png")
    (tmp_path / "links" / "test").symlink_to(tmp_path / "links" / "train")
    with pytest.raises(
        DataError, match=r"'test/a/1\.png' in split 'test'.* are the same file|are the same file"
    ):
        find_files(tmp_path / "links")
    (tmp_path / "round" / "a").mkdir(parents=True)
    touch(tmp_path / "round", "a/1.png")
    (tmp_path / "round" / "a" / "back").symlink_to(tmp_path / "round")
    assert isinstance(found := find_files(tmp_path / "round"), Pictures)
    assert listed(found.splits) == {"train": ["a/1.png"]}


def test_what_is_not_read_is_said(tmp_path: Path) -> None:
    touch(tmp_path / "a", "train/x/1.png", "test/x/1.png", "docs/1.png")
    with pytest.warns(NeuroTrailsWarning, match=r"'docs/1\.png' belong to no split"):
        find_files(tmp_path / "a")
    touch(tmp_path / "b", "x/1.png", "y/1.png")
    (tmp_path / "b" / "z").mkdir()
    with pytest.warns(NeuroTrailsWarning, match=r"'z': no pictures of these classes in any split"):
        find_files(tmp_path / "b")
    touch(tmp_path / "c", "train.csv", "test.csv", "other.csv")
    with pytest.warns(NeuroTrailsWarning, match=r"'other\.csv' belong to no split"):
        find_files(tmp_path / "c")


def test_folders_that_describe_themselves_are_left_to_datasets(tmp_path: Path) -> None:
    touch(tmp_path / "meta", "train/a/1.png", "train/metadata.csv")
    assert find_files(tmp_path / "meta") is None
    touch(tmp_path / "card", "x.csv")
    (tmp_path / "card" / "README.md").write_text("---\nconfigs:\n- config_name: a\n---\n# A set\n")
    assert find_files(tmp_path / "card") is None
    (tmp_path / "card" / "README.md").write_text("# A set\nconfigs: none\n")
    assert isinstance(find_files(tmp_path / "card"), Tables)


def test_a_stream_of_text_is_divided_in_the_same_way(tmp_path: Path) -> None:
    folder = tmp_path / "the [test] of training*"
    folder.mkdir()
    for split in ("train", "test"):
        lines = "".join(json.dumps({"text": f"{split} " * 9}) + "\n" for _ in range(4))
        (folder / f"{split}-en.jsonl").write_text(lines)
    split = load(Data(source=str(folder), text=Text(held_out=0)), WORDS, seed=0, stream_epoch=5)
    (inputs, _), *_ = split.test.epoch(0, 9)
    assert b"train" not in inputs.astype(np.uint8).tobytes()
    assert b"train" in next(split.train.epoch(1, 5))[0].astype(np.uint8).tobytes()
    with pytest.raises(DataError, match=r"data\.text\.subset: the folder .* has no subsets"):
        load_test(Data(source=str(folder), text=Text(subset="en")), WORDS, None)


# Pictures by other writers, and of all modes and sizes.


def encoded() -> bytes:
    content = BytesIO()
    Image.new("RGB", (4, 4), (9, 9, 9)).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize(
    "make",
    [
        lambda: pa.array([{"bytes": encoded(), "path": "elsewhere.png"}] * 4),
        lambda: pa.array([{"path": None, "bytes": encoded()}] * 4),
        lambda: pa.array([{"bytes": encoded()}] * 4),
        lambda: pa.array(
            [{"bytes": encoded(), "path": "a"}] * 4,
            pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())]),
        ),
        lambda: pa.array([encoded()] * 4),
        lambda: pa.array([encoded()] * 4, pa.large_binary()),
    ],
)
def test_parquet_files_of_other_writers(make: Callable[[], pa.Array], tmp_path: Path) -> None:
    for split in ("train", "test"):
        pq.write_table(pa.table({"picture": make(), "label": [0, 1, 0, 1]}), tmp_path / f"{split}.parquet")
    split = load(Data(source=str(tmp_path)), network(2), seed=0)
    np.testing.assert_array_equal(split.test.read(np.arange(4)), np.full((4, 3, 4, 4), 9))  # type: ignore[attr-defined]


def classes(root: Path, *modes: str, sizes: Mapping[int, tuple[int, int]] = {}) -> str:
    """Write one picture of each mode into each of two classes, to train and to test on."""
    for split in ("train", "test"):
        for name in "ab":
            for i, mode in enumerate(modes):
                draw(root, f"{split}/{name}/{i}.png", mode=mode, size=sizes.get(i, (4, 4)))
    return str(root)


@pytest.mark.parametrize("modes", [("RGB", "L"), ("L", "RGB"), ("L", "L", "RGB")])
def test_grey_pictures_among_colour_ones_are_three_equal_channels(
    modes: tuple[str, ...], tmp_path: Path
) -> None:
    split = load(Data(source=classes(tmp_path, *modes)), network(2), seed=0)
    pixels = split.test.read(np.arange(len(split.test)))  # type: ignore[attr-defined]
    assert pixels.shape == (2 * len(modes), 3, 4, 4)
    assert (pixels == pixels[:, :1]).all()


def test_a_grey_test_split_of_a_colour_model_is_converted_too(tmp_path: Path) -> None:
    draw(tmp_path, "train/a/1.png", "train/b/1.png")
    draw(tmp_path, "test/a/1.png", "test/b/1.png", mode="L")
    split = load(Data(source=str(tmp_path)), network(2), seed=0)
    alone = load_test(Data(source=str(tmp_path)), network(2), split.normalisation)
    for (ours, _), (theirs, _) in zip(split.test.epoch(0, 9), alone.epoch(0, 9), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def complaint(source: str, graph: BlockGraph, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(Data(source=source, **settings), graph, seed=0)
    return str(caught.value)


def test_advice_is_right_for_all_examples(tmp_path: Path) -> None:
    """Each advice is taken, and then the data load."""
    odd = classes(tmp_path / "odd", "RGB", "RGB", "RGB", sizes={0: (5, 5)})
    wide = nt_models.wide_resnet(depth=10, width=1, classes=2, size=4, channels=3)
    assert "2 shapes occur: 3×4×4 (8), 3×5×5 (4); --set data.resize=[4,4] would fit" in complaint(odd, wide)
    assert len(load(Data(source=odd, resize=(4, 4)), wide, seed=0).train) == 6
    mixed = classes(tmp_path / "mixed", "L", "L", "RGB")
    grey = nt_models.wide_resnet(depth=10, width=1, classes=2, size=4, channels=1)
    assert "--set graph.size=4 --set graph.channels=3 would fit" in complaint(mixed, grey)
    assert len(load(Data(source=mixed), wide, seed=0).train) == 6
    both = classes(tmp_path / "both", "L", "RGB", sizes={1: (6, 5)})
    assert "--set data.resize=[4,4] --set graph.channels=3 would fit" in complaint(both, grey)
    assert len(load(Data(source=both, resize=4), wide, seed=0).train) == 4
    flat = nt_models.mlp(inputs=99, hidden=(2,), classes=2)
    assert "--set data.resize=[4,4] --set graph.inputs=[3,4,4] would fit" in complaint(odd, flat)
    draw(tmp_path / "later", "train/a/1.png", "train/b/1.png")
    later = draw(tmp_path / "later", "test/a/1.png", "test/b/1.png", size=(5, 5))
    assert "resize the images, or train with --set data.resize=[4,4]" in complaint(later, wide)
    assert len(load(Data(source=later, resize=4), wide, seed=0).test) == 2


def test_resized_images_have_the_graph_s_size_and_channels(tmp_path: Path) -> None:
    source = classes(tmp_path, "RGB", "L", "RGBA", "P", sizes={0: (9, 5), 1: (3, 3)})
    for channels in (1, 3):
        for graph in (network(2, channels), nt_models.mlp(inputs=16 * channels, hidden=(2,), classes=2)):
            split = load(Data(source=source, resize=[4, 4]), graph, seed=0)
            assert split.test.read(np.arange(8)).shape == (8, channels, 4, 4)  # type: ignore[attr-defined]
    assert "data.resize: expected the size of the images that the graph reads" in complaint(
        source, network(2), resize=(4, 5)
    )


def test_images_alone_are_resized(stored: Callable[..., str]) -> None:
    rows = Dataset.from_dict({"x": [[1.0] * 16, [2.0] * 16], "label": [0, 1]})
    graph = nt_models.mlp(inputs=16, hidden=(2,), classes=2)
    assert "expected images to resize, found vectors" in complaint(
        stored(train=rows, test=rows), graph, resize=4
    )
    with pytest.raises(DataError, match=r"data\.resize: expected none for a graph that reads tokens"):
        load_test(Data(source="text:here", resize=(4, 4)), WORDS, None)


def test_advice_about_classes_is_right_for_all_splits(
    stored: Callable[..., str], labelled: Callable[..., Dataset]
) -> None:
    def numbered(labels: list[int]) -> Dataset:
        return labelled(len(labels)).remove_columns("label").add_column("label", labels)

    source = stored(train=numbered([0, 1, 5, 2]), test=numbered([0, 1, 7, 2]))
    graph = nt_models.wide_resnet(depth=10, width=1, classes=4, size=8, channels=3)
    assert "found 5; --set graph.classes=8 would fit" in complaint(source, graph)
