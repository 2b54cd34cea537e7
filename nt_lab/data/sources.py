"""Sources of examples: the bundled digits, a folder, or the Hugging Face hub; all as ``datasets``."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, Features, ReadInstruction, Value
from datasets.exceptions import DatasetsError
from PIL import Image

from nt_core.errors import DataError, nearest
from nt_lab.data.files import READERS, Pictures, Tables, find_files

DIGITS: Final = "digits"
DIGITS_TEST_SHARE: Final = 0.2
_DIGITS_BRIGHTNESS: Final = 15  # its 17 shades, 0 to 16, spread over a byte without rounding

HOLD_OUT: Final = "--set data.held_out=0.2 holds out a fifth of each class of data.train for tests"

Vector: Final = (datasets.Sequence, getattr(datasets, "List", datasets.Sequence))
"""The features that hold a list of values; datasets 4 renamed Sequence."""

UNREADABLE: Final = (
    OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, DatasetsError
)  # fmt: skip
"""Errors of ``datasets`` for unreadable sources: many, because files' own descriptions are trusted there."""

_TEXTS: Final = frozenset({".html", ".log", ".md", ".tex", ".text", ".txt", ".xml"})
_FILES: Final = _TEXTS | READERS.keys() | {".gz", ".npy", ".npz", ".tar", ".tsv", ".zip"}
"""Suffixes by which a source is a file, not a dataset's name on the hub."""

Splits = Mapping[str, Dataset]


def open_source(source: str) -> Splits:
    """Return the splits of a source by their names.

    Args:
        source: ``digits``, a folder (of parquet files, of images in a folder for each class, or of a dataset
            written by ``Dataset.save_to_disk``), or a name on the hub.

    Raises:
        DataError: nothing is there, or it cannot be read.

    Example:
        >>> {name: len(split) for name, split in open_source("digits").items()}
        {'train': 1437, 'test': 360}
    """
    if source == DIGITS:
        return _digits()
    path = expect_place(source)
    try:
        found = datasets.load_from_disk(path) if is_saved(path) else _load(path)
    except DataError:
        raise
    except UNREADABLE as error:
        raise DataError(explain(source, path, error)) from None
    splits = found if isinstance(found, dict) else {"train": found}
    return {name: _with_pictures(split) for name, split in splits.items()}


def expect_place(source: str) -> Path:
    """Return the path of a source, which may be a name on the hub, after a check that it is no file.

    Raises:
        DataError: the source is a file, or looks like a path where nothing is.
    """
    path = Path(source).expanduser()
    text = f"'text:{source}' for a text that a language model reads"
    if path.is_file():
        folder = f"give the folder it lies in: {str(path.parent)!r}"
        told = f"give {text}" if path.suffix.lower() in _TEXTS else f"{folder}, or {text}"
        raise DataError(f"data.source: {source!r} is a file; {told}")
    local = source.startswith((".", "/", "~")) or source.count("/") > 1
    if not path.exists() and (local or path.suffix.lower() in _FILES):
        raise DataError(
            f"data.source: {source!r} cannot be loaded: no folder {source!r} is there; give an existing one, "
            f"'digits', or {text}"
        )
    return path


def _load(path: Path) -> Any:
    """Load a folder, whose files are divided into splits here, or a dataset of the hub."""
    found = find_files(path) if path.is_dir() else None
    if found is None:
        return datasets.load_dataset(str(path))
    if isinstance(found, Tables):
        return datasets.load_dataset(found.reader, data_files=patterns(path, found))
    return {split: _picture_split(path, found, split) for split in found.splits}


def patterns(folder: Path, tables: Tables) -> dict[str, list[str]]:
    """Return files by split as ``datasets`` reads them, with characters escaped that mean patterns there."""
    return {
        split: [glob.escape(str(folder.absolute() / file)) for file in files]
        for split, files in tables.splits.items()
    }


def _picture_split(folder: Path, found: Pictures, split: str) -> Dataset:
    files = found.splits[split]
    columns: dict[str, list[Any]] = {"image": [str(folder.absolute() / file) for file in files]}
    features = {"image": Value("string")}
    if found.classes:
        number = {name: i for i, name in enumerate(found.classes)}
        has = split in found.labelled
        columns["label"] = [number[file.parent.name] if has else None for file in files]
        features["label"] = ClassLabel(names=list(found.classes))
    return Dataset.from_dict(columns, Features(features)).cast_column("image", datasets.Image())


def _with_pictures(dataset: Dataset) -> Dataset:
    """Take columns of encoded images for images, which only ``datasets`` itself marks as such.

    Other writers of parquet files store ``{bytes, path}`` or the bytes alone.
    """
    for name, feature in dataset.features.items():
        parts = feature if isinstance(feature, dict) else {"bytes": feature}
        if set(parts) <= {"bytes", "path"} and _is_binary(parts.get("bytes")):
            dataset = dataset.cast_column(name, datasets.Image())
    return dataset


def _is_binary(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("binary", "large_binary")


def take(splits: Splits, name: str, where: str) -> Dataset:
    """Return one split, or a part of one: ``train``, ``train[:80%]``, ``train+validation``.

    Args:
        splits: of :func:`open_source`.
        name: of the split, in the notation of ``datasets.ReadInstruction``; a part is one in the order of the
            examples.
        where: the setting that names the split, for errors.

    Raises:
        DataError: no such split (the message names the nearest), or the split is empty.

    Example:
        >>> len(take(open_source("digits"), "train[:50%]", "data.train"))
        718
    """
    for part in name.split("+"):
        base = part.partition("[")[0].strip()
        if base not in splits:
            share = f"; {HOLD_OUT}" if where == "data.test" else ""
            raise DataError(f"{where}: no split {base!r}{nearest(base, splits)}{share}")
    try:
        instructions = ReadInstruction.from_spec(name).to_absolute({k: len(v) for k, v in splits.items()})
    except (ValueError, AssertionError) as error:
        raise DataError(
            f"{where}: {name!r} is no split: {error}; expected train, train+validation or train[:1000], say"
        ) from None
    parts = [splits[part.splitname].select(range(part.from_, part.to)) for part in instructions]
    dataset = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    if len(dataset) == 0:
        raise DataError(f"{where}: split {name!r} is empty; expected at least one example")
    return dataset.with_format(None)


def count_shared(splits: Splits, one: str, other: str) -> int:
    """Return the number of examples that two (parts of) splits have in common.

    Example:
        >>> count_shared(open_source("digits"), "train[:1000]", "train[900:]+test")
        100
    """
    sizes = {name: len(split) for name, split in splits.items()}
    first, second = (ReadInstruction.from_spec(name).to_absolute(sizes) for name in (one, other))
    return sum(
        max(0, min(a.to, b.to) - max(a.from_, b.from_))
        for a in first
        for b in second
        if a.splitname == b.splitname
    )


def image_column(dataset: Dataset, name: str | None, where: str, *, vectors: bool) -> str:
    """Find the column that holds the inputs.

    Args:
        dataset: a split.
        name: of the column, where one is given.
        where: the dataset, for errors.
        vectors: whether columns of vectors will do where there are no images.

    Raises:
        DataError: no such column, none that fits, or several.
    """
    kinds: tuple[Any, ...] = (datasets.Image,)
    found = _columns_of(dataset, kinds)
    if vectors and (name is not None or not found):
        kinds = (datasets.Image, *Vector)
        found = _columns_of(dataset, kinds)
    what = "images or vectors" if vectors else "images"
    return _choose(dataset, found, name, where, what=what, setting="data.image")


def label_column(dataset: Dataset, name: str | None, where: str) -> str:
    """Find the column that holds the labels: the one of class labels, else integers called ``label``.

    Raises:
        DataError: no such column, none that fits, or several.
    """
    found = _columns_of(dataset, (ClassLabel,))
    integers = [
        column
        for column, feature in dataset.features.items()
        if isinstance(feature, Value) and "int" in feature.dtype
    ]
    if name is not None:
        found += integers
    elif not found:
        found = [column for column in integers if column in ("label", "labels")]
    return _choose(dataset, found, name, where, what="class labels", setting="data.label")


def _columns_of(dataset: Dataset, kinds: tuple[Any, ...]) -> list[str]:
    return [column for column, feature in dataset.features.items() if isinstance(feature, kinds)]


def _choose(
    dataset: Dataset, found: list[str], name: str | None, where: str, *, what: str, setting: str
) -> str:
    columns = ", ".join(f"{column} ({_kind(feature)})" for column, feature in dataset.features.items())
    if name is not None and name not in dataset.features:
        raise DataError(f"{setting}: {where} has no column {name!r}{nearest(name, dataset.features)}")
    if name is not None and name not in found:
        raise DataError(f"{setting}: {where}: column {name!r} does not hold {what}; found {columns}")
    if not found:
        raise DataError(
            f"{where}: expected a column of {what}, found {columns}; name one by --set {setting}=COLUMN "
            "or use another dataset"
        )
    if name is None and len(found) > 1:
        raise DataError(
            f"{where}: several columns hold {what}: {', '.join(found)}; choose by --set {setting}={found[0]}"
        )
    return name or found[0]


def _kind(feature: Any) -> str:
    dtype = getattr(feature, "dtype", "") if isinstance(feature, Value) else ""
    return dtype or type(feature).__name__


def is_saved(path: Path) -> bool:
    """Return whether a folder holds a dataset written by ``save_to_disk``."""
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def explain(source: str, path: Path, error: Exception) -> str:
    """Return the reason why a source cannot be loaded, and a remedy, in one line."""
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    if path.exists():
        remedy = "expected parquet files, images in a folder for each class, or a saved dataset"
    else:
        remedy = "check the name (owner/dataset) and the connection, or give 'digits' or a folder"
    return f"data.source: {source!r} cannot be loaded: {reason.rstrip('.')}; {remedy}"


def _digits() -> Splits:
    """Split scikit-learn's digits into 1,437 and 360 examples, stratified, independently of any seed."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    pixels = raw.images.astype(np.uint8) * _DIGITS_BRIGHTNESS
    columns = {"image": [Image.fromarray(image) for image in pixels], "label": raw.target}
    features = Features(image=datasets.Image(), label=ClassLabel(num_classes=10))
    whole = Dataset.from_dict(columns, features=features)
    # random_state means NumPy's legacy generator, whose stream is frozen for good.
    train, test = train_test_split(
        np.arange(len(whole)), test_size=DIGITS_TEST_SHARE, stratify=raw.target, random_state=0
    )
    return {"train": whole.select(np.sort(train)), "test": whole.select(np.sort(test))}
