"""Run folders: the files of a training, and their readers for comparisons."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nt_core.checkpoint import CONFIG, Checkpoint, read_config, save_checkpoint
from nt_core.errors import CheckpointError, NeuroTrailsError
from nt_core.files import (
    ParseError,
    clear_temporaries,
    parse_json,
    read_text,
    sync_folder,
    to_json,
    write_atomically,
    write_out,
)
from nt_core.metrics import RECORDED
from nt_core.runs import FILES as FILES
from nt_core.runs import HISTORY as HISTORY
from nt_core.runs import SPEC as SPEC
from nt_core.spec import RunSpec

MOST_HISTORY_BYTES: Final = 256 << 20
"""Largest size of a history: about that of a million epochs."""

MEMBERS: Final = "members"
"""The folder in an unfinished run's folder where its finished members lie, ``head1``, ``head2``, …."""

STATES: Final = "states"
"""The folder in an unfinished run's folder that holds the saved states, :mod:`nt_core.states.folder`."""

CLASSES: Final = "classes.json"
"""The file in an unfinished run's folder that holds the names of the classes with which the run began."""

UNFINISHED: Final = "unfinished"
"""The folder in a run's folder that holds the run until it is complete."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run: ``config.json``, ``model.safetensors``, ``history.jsonl``, ``spec.yaml``.

    Attributes:
        path: of the folder, which need not exist yet.

    Example:
        >>> import tempfile
        >>> run = RunFolder(Path(tempfile.mkdtemp()))
        >>> run.append({"event": "epoch", "epoch": 1, "loss": 0.5})
        >>> run.history()
        [{'event': 'epoch', 'epoch': 1, 'loss': 0.5}]
    """

    path: Path

    @property
    def is_complete(self) -> bool:
        """Return whether the folder holds a complete run, except perhaps for a move of its last files."""
        return any(os.path.exists(folder / CONFIG) for folder in (self.path / UNFINISHED, self.path))

    def finish(self) -> bool:
        """Move the last files of a complete run that stopped while its files were moved here.

        Returns:
            Whether there was such a run.
        """
        staging = self.path / UNFINISHED
        if not os.path.exists(staging / CONFIG):  # which is false for names that are too long
            return False
        _move(staging, self.path)
        return True

    @contextmanager
    def replacing(self, *, overwrite: bool) -> Iterator[RunFolder]:
        """Give a folder for a new run, whose files move here once it is complete.

        Until then an earlier run stays unchanged. The files of an interrupted run are in ``unfinished``,
        where the next run resumes from them or replaces them.

        Args:
            overwrite: whether an earlier complete run may be replaced.

        Raises:
            NeuroTrailsError: the folder holds a run that may not be replaced.
        """
        self.finish()
        present = _present(self.path)
        if present and not overwrite:
            raise NeuroTrailsError(
                f"{self.path}: holds a run already ({', '.join(present)}); choose another folder with --out, "
                "or replace it with --overwrite"
            )
        yield RunFolder(self.path / UNFINISHED)
        self.finish()

    def write_spec(self, run: RunSpec) -> None:
        """Write the complete spec, from which the run can be repeated.

        Raises:
            NeuroTrailsError: the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / SPEC, run.to_yaml().encode())
        except OSError as error:
            raise NeuroTrailsError(
                f"{self.path}: cannot be written ({error.strerror}); choose another folder with --out"
            ) from None

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record to the history.

        Raises:
            NeuroTrailsError: the history cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with (self.path / HISTORY).open("a", encoding="utf-8") as file:
                file.write(to_json(record) + "\n")
        except OSError as error:
            raise NeuroTrailsError(
                f"{self.path / HISTORY}: cannot be written ({error.strerror}); make room, then run the same "
                "command again: it goes on from the last state that was saved"
            ) from None

    def forget(self, kept: Callable[[Mapping[str, Any]], bool]) -> None:
        """Delete the files of an interrupted run, except for the kept records of its history."""
        path = self.path / HISTORY
        records = [each for each in self.history() if kept(each)] if path.exists() else []
        shutil.rmtree(self.path / STATES, ignore_errors=True)
        if records:  # in one go, because another crash must not lose the kept records
            write_atomically(path, "".join(to_json(each) + "\n" for each in records).encode())
        _delete(self.path, but=(HISTORY,) if records else ())

    def history_bytes(self) -> int:
        """Flush the history to disk and return its size in bytes."""
        path = self.path / HISTORY
        if not path.exists():
            return 0
        with path.open("rb+") as file:
            os.fsync(file.fileno())
            return file.seek(0, os.SEEK_END)

    def expect_history(self, size: int) -> None:
        """Check that the history has at least ``size`` bytes.

        Raises:
            CheckpointError: it is shorter.
        """
        path = self.path / HISTORY
        found = path.stat().st_size if path.exists() else 0
        if found < size:
            raise CheckpointError(
                f"{path}: expected at least the {size} bytes that were written before the last saved state, "
                f"found {found}; restore the file, or begin anew with --overwrite"
            )

    def cut_history(self, size: int) -> None:
        """Truncate the history to its first ``size`` bytes.

        Raises:
            CheckpointError: it is shorter.
        """
        self.expect_history(size)
        path = self.path / HISTORY
        if path.exists():
            os.truncate(path, size)

    def history(self) -> list[dict[str, Any]]:
        """Return the records of the history without a last line that was cut off.

        Raises:
            CheckpointError: the history cannot be read, or a line is no JSON object.
        """
        path = self.path / HISTORY
        try:
            lines = read_text(path, MOST_HISTORY_BYTES).split("\n")[:-1]
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path}: not UTF-8: {error}; restore it") from None
        return [_parse_line(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the trained ensemble and its record; the run is complete when this returns."""
        save_checkpoint(self.path, checkpoint)

    def record(self) -> dict[str, Any]:
        """Return the trainer's record beside the checkpoint.

        Raises:
            CheckpointError: there is no complete run, or the record was not written by ``nt train``.
        """
        record = read_config(self.path)["record"]
        missing = {"name", "metrics", "cost", "examples", "seconds", "run"} - set(record)
        if missing:
            raise CheckpointError(
                f"{self.path / CONFIG}: its record lacks {', '.join(sorted(missing))}; "
                "expected a run that nt train wrote"
            )
        try:
            row(record)
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise CheckpointError(
                f"{self.path / CONFIG}: its record is not one that nt train writes "
                f"({type(error).__name__}: {error}); expected what nt train wrote"
            ) from None
        return dict(record)


def row(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's line in a comparison.

    Training FLOPs are the FLOPs of one step × the examples seen. Relative training FLOPs are relative to the
    single dense network trained on as many examples. The backend is ``torch`` or ``keras/jax``, say; None:
    the record does not name it. Metrics are means over the unit: ``examples``, or ``tokens`` of a language
    model.

    Args:
        record: of :meth:`RunFolder.record`.

    Example:
        >>> cost = {"weights": {"active": 5}, "flops": {"inference": 20, "training_step": 60.0},
        ...         "relative_to_single_dense": {"weights_active": 0.5, "flops_inference": 0.4,
        ...                                      "flops_training_step": 0.4}}
        >>> metrics = {"accuracy": 0.9, "nll": 0.3, "perplexity": 1.35, "ece": 0.02, "disagreement": 0.1}
        >>> line = row({"name": "a", "metrics": metrics, "cost": cost, "examples": 100, "seconds": 2.0})
        >>> line["flops_training"], line["relative"]["flops_training"]
        (6000.0, 0.4)
    """
    cost, metrics = record["cost"], record["metrics"]
    relative = cost["relative_to_single_dense"]
    return {
        "name": record["name"],
        "backend": _backend(record),
        "unit": record.get("data", {}).get("unit", "examples"),
        **{figure.name: metrics[figure.name] for figure in RECORDED},
        "member_perplexity": metrics.get("member_perplexity"),
        "weights_active": cost["weights"]["active"],
        "flops_training": cost["flops"]["training_step"] * record["examples"],
        "flops_inference": cost["flops"]["inference"],
        "seconds": record["seconds"],
        "relative": {
            "weights_active": relative["weights_active"],
            "flops_training": relative["flops_training_step"],
            "flops_inference": relative["flops_inference"],
        },
    }


def _backend(record: Mapping[str, Any]) -> str | None:
    return "/".join(record[key] for key in ("backend", "engine") if record.get(key)) or None


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of a comparison with its relative figures as columns ``relative_…``.

    Example:
        >>> flat({"name": "a", "relative": {"flops_training": 0.5}})
        {'name': 'a', 'relative_flops_training': 0.5}
    """
    relative = {f"relative_{key}": value for key, value in row["relative"].items()}
    return {key: value for key, value in row.items() if key != "relative"} | relative


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write flat rows of the same columns as CSV; the file appears whole or not at all.

    Raises:
        NeuroTrailsError: the file cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    try:
        write_out(path, text.getvalue().encode())
    except OSError as error:
        raise NeuroTrailsError(f"{path}: cannot be written ({error.strerror})") from None


def _parse_line(line: str, where: str) -> dict[str, Any]:
    try:
        record = parse_json(line)
    except ParseError as error:
        raise CheckpointError(f"{where}: not JSON: {error}; restore the file or delete the line") from None
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        raise CheckpointError(
            f"{where}: expected an object with an 'event'; restore the file or delete the line"
        )
    return record


def _present(folder: Path) -> list[str]:
    return [name for name in FILES if os.path.exists(folder / name)]


def _move(source: Path, target: Path) -> None:
    """Move a run's files, the config last, so that an interrupted move can be resumed."""
    target.mkdir(parents=True, exist_ok=True)
    for name in reversed(_present(source)):
        if name == CONFIG:
            for folder in (MEMBERS, STATES):
                shutil.rmtree(source / folder, ignore_errors=True)
        (source / name).replace(target / name)
    sync_folder(target)
    _delete(source)


def _delete(folder: Path, but: Sequence[str] = ()) -> None:
    """Delete a run's files except those in ``but``, and its folder if nothing else is in it."""
    if not folder.is_dir():
        return
    for name in (*FILES, CLASSES):
        if name not in but:
            (folder / name).unlink(missing_ok=True)
        clear_temporaries(folder / name)
    if not any(folder.iterdir()):
        folder.rmdir()
