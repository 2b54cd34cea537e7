"""Division of a folder's files into splits, by the names of folders and files below it.

``datasets`` 5.2 finds the splits' keywords anywhere in a path, so that it takes a class called ``train`` for
a split. Therefore the files of each split are named here, and each belongs to one split.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final

from PIL import Image

from nt_core.errors import DataError, NeuroTrailsWarning

KEYWORDS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Words in the names of files and folders → split, as ``datasets`` has them."""

READERS: Final[Mapping[str, str]] = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".txt": "text",
}
"""Suffix of a file of data → the reader of ``datasets``."""

_DESCRIPTIONS: Final = frozenset(
    {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
)
_METADATA: Final = frozenset({"metadata.csv", "metadata.jsonl", "metadata.parquet"})
_SHARD: Final = re.compile(r"(.+)-\d{5}-of-\d{5}")
_SHOWN: Final = 5

Files = Mapping[str, Sequence[Path]]


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Files of data.

    Attributes:
        reader: the reader of ``datasets``.
        splits: split → its files, relative to the folder.
    """

    reader: str
    splits: Files


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures in a folder for each class.

    Attributes:
        splits: split → its pictures, relative to the folder.
        classes: names of the classes in the order of their numbers; none: the pictures have no labels.
        labelled: the splits whose pictures lie in a folder for each class.
    """

    splits: Files
    classes: tuple[str, ...]
    labelled: frozenset[str]


def find_files(folder: Path) -> Tables | Pictures | None:
    """Return the files of a folder by split.

    Args:
        folder: holds files of one kind of data, or pictures as ``class/picture`` or ``split/class/picture``.

    Returns:
        The files; None: they are described by a file of the folder itself (a README with ``configs``, or
        metadata of pictures), or are of kinds that only ``datasets`` knows.

    Raises:
        DataError: a file belongs to two splits, or the folders of pictures can be meant in several ways.
    """
    found = sorted(_walk(folder), key=str)
    pictures = [file for file in found if file.suffix.lower() in _picture_suffixes()]
    tables = [file for file in found if file.suffix.lower() in READERS and file.name not in _DESCRIPTIONS]
    if _is_described(folder) or any(file.name in _METADATA for file in tables):
        return None
    if len(pictures) > len(tables):
        chosen = _pictures(folder, pictures)
        _expect_one_split(folder, chosen.splits)
        return chosen
    if not tables:
        return None
    ((reader, _),) = Counter(READERS[file.suffix.lower()] for file in tables).most_common(1)
    splits = _table_splits([file for file in tables if READERS[file.suffix.lower()] == reader])
    _expect_one_split(folder, splits)
    return Tables(reader=reader, splits=splits)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, relative to it, without hidden ones; links to folders are followed."""
    for place, folders, files in os.walk(folder, followlinks=True):
        here = Path(place).relative_to(folder)
        around = os.path.realpath(place)
        folders[:] = [
            name
            for name in folders
            if not name.startswith((".", "__"))
            and not f"{around}/".startswith(f"{os.path.realpath(os.path.join(place, name))}/")
        ]
        yield from (here / name for name in files if not name.startswith((".", "__")))


def _picture_suffixes() -> Iterable[str]:
    return Image.registered_extensions().keys() - {".pdf", ".h5", ".hdf", ".mpg", ".mpeg"}


def _is_described(folder: Path) -> bool:
    try:
        head = (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:100_000]
    except OSError:
        return False
    front = head.partition("---")[2].partition("\n---")[0] if head.startswith("---") else ""
    return re.search(r"^\s*(configs|data_files)\s*:", front, re.MULTILINE) is not None


def _splits_in(name: str) -> list[str]:
    """Return the splits whose keywords are words of a name.

    Example:
        >>> _splits_in("train-00000-of-00002"), _splits_in("trainer"), _splits_in("Val_2017")
        (['train'], [], ['validation'])
    """
    return list(dict.fromkeys(KEYWORDS[w] for w in re.split("[-._ 0-9]+", name.lower()) if w in KEYWORDS))


def _split_of(parts: Sequence[str], where: PurePath) -> str | None:
    """Return the split that parts of a path name; None: none of them does.

    Raises:
        DataError: they name several.
    """
    found = list(dict.fromkeys(split for part in parts for split in _splits_in(part)))
    if len(found) > 1:
        raise DataError(
            f"data.source: the path {str(where)!r} names several splits: {', '.join(found)}; rename the file "
            "or its folder, so that it belongs to one"
        )
    return found[0] if found else None


def _table_splits(files: Sequence[Path]) -> Files:
    splits: dict[str, list[Path]] = {}
    others = []
    for file in files:
        shard = _SHARD.match(file.name) if file.parent.name == "data" else None
        split = shard[1] if shard else _split_of([*file.parent.parts, file.stem], file)
        if split is None:
            others.append(file)
        else:
            splits.setdefault(split, []).append(file)
    if not splits:
        return {"train": others}
    _warn_of_unread(others)
    return splits


def _pictures(folder: Path, files: Sequence[Path]) -> Pictures:
    inside = [file for file in files if len(file.parts) > 1]
    if not inside:
        return Pictures(splits={"train": files}, classes=(), labelled=frozenset())
    below = _wrapped(inside) if len(inside) == len(files) else 0
    tops: dict[str, list[Path]] = {}
    for file in inside:
        tops.setdefault(file.parts[below], []).append(file)
    deep = {top for top, own in tops.items() if any(len(file.parts) > below + 2 for file in own)}
    named = {top: _split_of([top], Path(top)) for top in tops if deep or all(map(_splits_in, tops))}
    if not deep and not named:
        return _labelled({"train": inside}, folder, below)
    if not any(named[top] for top in deep or tops):
        _refuse_nested(next(file for file in inside if len(file.parts) > below + 2))
    _warn_of_unread([file for top, own in tops.items() if top not in deep and not named[top] for file in own])
    splits: dict[str, list[Path]] = {}
    labelled: dict[str, list[Path]] = {}
    for top, own in tops.items():
        if top in deep or named[top]:
            (labelled if top in deep else splits).setdefault(named[top] or top, []).extend(own)
    classes = _labelled(labelled, folder, below + 1) if labelled else None
    return Pictures(
        splits={**splits, **labelled},
        classes=classes.classes if classes else (),
        labelled=frozenset(labelled),
    )


def _labelled(splits: Files, folder: Path, at: int) -> Pictures:
    """Return pictures whose class is the part number ``at`` of their path."""
    for files in splits.values():
        for file in files:
            if len(file.parts) != at + 2:
                _refuse_nested(file)
    names = {file.parts[at] for files in splits.values() for file in files}
    _warn_of_empty(folder, splits, names, at)
    return Pictures(splits=splits, classes=tuple(sorted(names)), labelled=frozenset(splits))


def _wrapped(files: Sequence[Path]) -> int:
    """Return how many folders around everything say nothing: in ``pets/train/cat/1.png`` it is ``pets``."""
    below = 0
    while len({file.parts[below] for file in files}) == 1:
        deeper = min(len(file.parts) for file in files) > below + 2
        if not deeper or _splits_in(files[0].parts[below]):
            break
        below += 1
    return below


def _refuse_nested(file: Path) -> None:
    raise DataError(
        f"data.source: the folders of {str(file)!r} can be meant in several ways; expected class/picture or "
        "split/class/picture (train/cat/1.png, say); put the pictures of a class into one folder"
    )


def _warn_of_unread(files: Sequence[Path]) -> None:
    if files:
        _warn(f"data.source: {_listed(files)} belong to no split and are not read")


def _warn_of_empty(folder: Path, splits: Files, names: set[str], at: int) -> None:
    """Say which folders beside those of classes hold no pictures."""
    parents = {PurePath(*file.parts[:at]) for files in splits.values() for file in files}
    beside = {
        Path(entry.path).relative_to(folder)
        for parent in parents
        for entry in os.scandir(folder / parent)
        if entry.is_dir() and not entry.name.startswith((".", "__"))
    }
    empty = sorted(path for path in beside if path.name not in names)
    if empty:
        _warn(f"data.source: {_listed(empty)}: no pictures of these classes in any split; they are left out")


def _listed(files: Sequence[Path]) -> str:
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return ", ".join(repr(str(file)) for file in files[:_SHOWN]) + more


def _warn(message: str) -> None:
    warnings.warn(message, NeuroTrailsWarning, stacklevel=2)


def _expect_one_split(folder: Path, splits: Files) -> None:
    """Check that no file is found in two splits, through links say.

    Raises:
        DataError: one is.
    """
    real = {place: os.path.realpath(folder / place) for files in splits.values() for place in _places(files)}
    seen: dict[str, tuple[str, Path]] = {}
    for split, files in splits.items():
        for file in files:
            own = f"{real[file.parent]}/{file.name}"
            own = os.path.realpath(own) if os.path.islink(own) else own
            other, first = seen.setdefault(own, (split, file))
            if other != split:
                raise DataError(
                    f"data.source: {str(file)!r} in split {split!r} and {str(first)!r} in split {other!r} "
                    "are the same file; keep one of them"
                )


def _places(files: Sequence[Path]) -> set[Path]:
    return {file.parent for file in files}
