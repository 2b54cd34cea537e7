from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import nt_models
from nt_core.checkpoint import CONFIG, TENSORS, Checkpoint, load_checkpoint, read_config, save_checkpoint
from nt_core.checkpoint import directory as module
from nt_core.checkpoint.directory import FORMAT, mask_of_csr
from nt_core.errors import CheckpointError
from nt_core.files import write_atomically
from nt_core.masks import Mask
from nt_core.spec import PRESETS, EnsembleSpec
from nt_core.structure import MultiHead
from nt_core.testing.data import random_values
from nt_core.testing.strategies import block_graphs, masks, structures
from nt_core.topology import Dense, Dynamic, GradualPruning, Static, initial_masks

MLP = nt_models.mlp(inputs=12, hidden=(10, 8, 6), classes=5, norm=True)


def trained(spec: EnsembleSpec, seed: int = 0, dtype: Any = np.float32) -> Checkpoint:
    """Make what a trainer would: arbitrary values, inactive ones exactly 0."""
    found = dict(initial_masks(spec.topology, spec.layout, seed))
    values = {
        name: np.where(found[name].dense(), value, 0).astype(dtype) if name in found else value
        for name, value in random_values(spec.layout, seed, dtype).items()
    }
    return Checkpoint(spec=spec, values=values, masks=found, record={"seed": seed, "steps": [1, 2], "x": 0.1})


def assert_same(found: Checkpoint, expected: Checkpoint) -> None:
    assert found.spec == expected.spec
    assert found.masks == expected.masks
    assert found.record == expected.record
    assert found.values.keys() == expected.values.keys()
    for name, value in expected.values.items():
        assert found.values[name].dtype == value.dtype
        np.testing.assert_array_equal(found.values[name], value)


# Round trips.


@pytest.mark.parametrize("graph", [MLP, nt_models.wide_resnet(depth=10, width=1, classes=5, size=8)])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_comes_back_bit_for_bit(tmp_path: Path, preset: str, graph: Any) -> None:
    before = trained(PRESETS[preset](graph))
    save_checkpoint(tmp_path / "new" / "run", before)
    assert_same(load_checkpoint(tmp_path / "new" / "run", expected=before.spec), before)


@st.composite
def checkpoints(draw: st.DrawFn) -> Checkpoint:
    graph = draw(block_graphs())
    topology = draw(st.sampled_from([Dense(), *(Static(sparsity=s) for s in (0.0, 0.5, 0.9, 0.999999))]))
    spec = EnsembleSpec(graph=graph, structure=draw(structures(graph)), topology=topology)
    return trained(
        spec, draw(st.integers(0, 99)), draw(st.sampled_from([np.float32, np.float64, np.float16]))
    )


@settings(max_examples=60)
@given(checkpoints())
def test_any_checkpoint_comes_back_bit_for_bit(tmp_path_factory: Any, before: Checkpoint) -> None:
    folder = tmp_path_factory.mktemp("any")
    save_checkpoint(folder, before)
    assert_same(load_checkpoint(folder, expected=before.spec), before)
    shutil.rmtree(folder)


@given(masks(), st.integers(0, 99))
def test_any_mask_comes_back(tmp_path_factory: Any, mask: Mask, seed: int) -> None:
    """Over one linear layer of the mask's own proportions; gradual pruning passes any count."""
    rows, columns = mask.shape[0], mask.size // mask.shape[0]
    spec = EnsembleSpec(
        graph=nt_models.mlp(inputs=columns, hidden=(), classes=rows),
        topology=GradualPruning(sparsity=0.999999),
    )
    flat = Mask.from_flat((rows, columns), mask.flat())
    (name,) = spec.counts
    values = dict(random_values(spec.layout, seed))
    values[name] = np.where(flat.dense(), values[name], 0)
    folder = tmp_path_factory.mktemp("mask")
    save_checkpoint(folder, Checkpoint(spec=spec, values=values, masks={name: flat}))
    assert load_checkpoint(folder).masks == {name: flat}
    np.testing.assert_array_equal(load_checkpoint(folder).values[name], values[name])
    shutil.rmtree(folder)


def test_active_zeros_stay_active_and_negative_zeros_and_extremes_keep_their_bits(tmp_path: Path) -> None:
    spec = EnsembleSpec(graph=nt_models.mlp(inputs=6, hidden=(), classes=1), topology=Static(sparsity=1 / 6))
    (name,) = spec.counts
    values = dict(random_values(spec.layout, 0, np.float32))
    values[name] = np.array([[0.0, -0.0, np.inf, np.nan, np.float32(1e-45), 0]], np.float32)
    mask = Mask.from_flat((1, 6), np.arange(5))
    save_checkpoint(tmp_path, Checkpoint(spec=spec, values=values, masks={name: mask}))
    found = load_checkpoint(tmp_path)
    assert found.masks == {name: mask}
    assert found.values[name].tobytes() == values[name].tobytes()


def test_saving_again_overwrites_and_leaves_other_files_alone(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text("{}")
    first, second = trained(PRESETS["neurotrails"](MLP), 1), trained(PRESETS["rigl"](MLP), 2)
    save_checkpoint(tmp_path, first)
    save_checkpoint(tmp_path, second)
    assert_same(load_checkpoint(tmp_path), second)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([CONFIG, TENSORS, "history.jsonl"])


def test_the_same_checkpoint_is_the_same_bytes(tmp_path: Path) -> None:
    before = trained(PRESETS["neurotrails"](MLP))
    for name in "ab":
        save_checkpoint(tmp_path / name, before)
    for file in (CONFIG, TENSORS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_backbone_is_stored_once(tmp_path: Path) -> None:
    before = trained(PRESETS["neurotrails"](MLP))
    save_checkpoint(tmp_path, before)
    stored = {
        name.rpartition(".")[0] if name.endswith(CSR) else name for name in load_file(tmp_path / TENSORS)
    }
    assert stored == {placed.name for placed in before.spec.layout.weights}


CSR = (".values", ".indices", ".indptr")


@pytest.mark.parametrize("structure", [MultiHead(split=2, heads=3), MultiHead(split=0, heads=1)], ids=str)
def test_a_checkpoint_at_sparsity_0_9_is_at_most_a_quarter_of_the_dense_state(
    tmp_path: Path, structure: MultiHead
) -> None:
    graph = nt_models.wide_resnet(depth=16, width=2, classes=100)
    before = trained(EnsembleSpec(graph=graph, structure=structure, topology=Dynamic(sparsity=0.9)))
    save_checkpoint(tmp_path, before)
    size = sum((tmp_path / file).stat().st_size for file in (CONFIG, TENSORS))
    assert size <= 0.25 * sum(value.nbytes for value in before.values.values())


# What is missing, truncated or altered.


@pytest.fixture(scope="module")
def saved(tmp_path_factory: Any) -> tuple[Path, Checkpoint]:
    graph = nt_models.mlp(inputs=5, hidden=(4, 3), classes=2, norm=True)
    spec = EnsembleSpec(graph=graph, structure=MultiHead(split=1, heads=2), topology=Dynamic(sparsity=0.6))
    folder = tmp_path_factory.mktemp("saved")
    before = trained(spec)
    save_checkpoint(folder, before)
    return folder, before


@pytest.fixture
def copied(saved: tuple[Path, Checkpoint], tmp_path: Path) -> Path:
    shutil.copytree(saved[0], tmp_path / "run")
    return tmp_path / "run"


def damaged(folder: Path, scratch: Path, file: str, content: bytes) -> Path:
    """Copy a checkpoint with one file of other content."""
    scratch.mkdir(exist_ok=True)
    for name in (CONFIG, TENSORS):
        (scratch / name).write_bytes(content if name == file else (folder / name).read_bytes())
    return scratch


@settings(max_examples=400)
@given(st.data())
@pytest.mark.parametrize("file", [CONFIG, TENSORS])
def test_truncated_anywhere_is_an_error(
    saved: Any, tmp_path_factory: Any, file: str, data: st.DataObject
) -> None:
    folder, _ = saved
    whole = (folder / file).read_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    scratch = damaged(folder, tmp_path_factory.getbasetemp() / "cut", file, whole[:cut])
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(scratch)
    assert str(scratch / file) in str(caught.value)


@settings(max_examples=600)
@given(st.data(), st.integers(1, 255))
@pytest.mark.parametrize("file", [CONFIG, TENSORS])
def test_any_altered_byte_is_an_error_or_changes_nothing(
    saved: Any, tmp_path_factory: Any, file: str, data: st.DataObject, flip: int
) -> None:
    """Blanks between the config's words may change; no value, mask, spec or record can."""
    folder, before = saved
    whole = bytearray((folder / file).read_bytes())
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position] ^= flip
    scratch = damaged(folder, tmp_path_factory.getbasetemp() / "flip", file, bytes(whole))
    found, error = attempt(scratch)
    if found is None:
        assert str(scratch) in error
    else:
        assert file == CONFIG
        assert_same(found, before)


def attempt(folder: Path) -> tuple[Checkpoint | None, str]:
    """Load a checkpoint, or return what the error says."""
    try:
        return load_checkpoint(folder), ""
    except CheckpointError as error:
        return None, str(error)


@pytest.mark.parametrize(
    "key", ["spec", "masked", "record", "tensors_sha256", "library", "format", "config_sha256"]
)
def test_an_altered_entry_of_the_config_is_an_error(copied: Path, key: str) -> None:
    config = json.loads((copied / CONFIG).read_text())
    assert key in config
    for change in (None, [], {}, "x", 2):
        (copied / CONFIG).write_text(json.dumps({**config, key: change}))
        with pytest.raises(CheckpointError, match=r"config\.json"):
            load_checkpoint(copied)
    del config[key]
    (copied / CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_checkpoint(copied)


def test_a_mask_cannot_be_lost_by_altering_the_list_of_masks(copied: Path, saved: Any) -> None:
    config = json.loads((copied / CONFIG).read_text())
    config["masked"] = config["masked"][1:]
    (copied / CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="altered after it was written; restore the file"):
        load_checkpoint(copied)


@pytest.mark.parametrize("file", [CONFIG, TENSORS])
def test_a_missing_file_is_named(copied: Path, file: str) -> None:
    (copied / file).unlink()
    with pytest.raises(CheckpointError, match=f"{file}: cannot be read .No such file or directory"):
        load_checkpoint(copied)


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is this a run's folder\?"):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"is this a run's folder\?"):
        load_checkpoint(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path / "file")
    for content in ("[]", "3", "null", "{}", '{"spec": {}}', '"format"'):
        (tmp_path / CONFIG).write_text(content)
        with pytest.raises(CheckpointError, match=r"is this a run's folder\?"):
            read_config(tmp_path)
    (tmp_path / CONFIG).write_bytes(b"\xff\xff")
    with pytest.raises(CheckpointError, match="not JSON"):
        read_config(tmp_path)


def test_files_of_two_checkpoints_do_not_mix(tmp_path: Path) -> None:
    for seed in (1, 2):
        save_checkpoint(tmp_path / str(seed), trained(PRESETS["neurotrails"](MLP), seed))
    shutil.copy(tmp_path / "1" / TENSORS, tmp_path / "2" / TENSORS)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated or altered: its SHA-256 is"):
        load_checkpoint(tmp_path / "2")


@pytest.mark.parametrize("format_", [FORMAT + 1, 0, "1", None])
def test_another_format_is_an_error_that_says_so_whatever_else_it_holds(tmp_path: Path, format_: Any) -> None:
    (tmp_path / CONFIG).write_text(json.dumps({"format": format_, "something": "new"}))
    with pytest.raises(CheckpointError, match=f"format {format_!r}, but this library reads 1; upgrade"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (
            PRESETS["neurotrails"](nt_models.mlp(inputs=12, hidden=(10, 9, 6), classes=5, norm=True)),
            r"weight 'head1/hidden2/linear1.weight' is expected of shape \(9, 10\), found of shape \(8, 10\)",
        ),
        (
            PRESETS["neurotrails"](MLP, heads=4),
            r"weight 'head4/hidden2/linear1.weight' is expected of shape \(8, 10\), found absent",
        ),
        (
            PRESETS["neurotrails"](MLP, heads=2),
            r"weight 'head3/hidden2/linear1.weight' is expected absent, found of shape \(8, 10\)",
        ),
        (
            PRESETS["neurotrails"](MLP, split=2),
            r"weight 'backbone/hidden2/linear1.weight' is expected of shape \(8, 10\), found absent",
        ),
    ],
    ids=["width", "more heads", "fewer heads", "split"],
)
def test_another_spec_is_an_error_that_names_the_first_weight(
    tmp_path: Path, expected: EnsembleSpec, message: str
) -> None:
    save_checkpoint(tmp_path, trained(PRESETS["neurotrails"](MLP)))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path, expected=expected)


def test_another_topology_is_another_spec_but_another_plan_is_not(tmp_path: Path) -> None:
    before = trained(PRESETS["neurotrails"](MLP))
    save_checkpoint(tmp_path, before)
    assert_same(load_checkpoint(tmp_path, expected=before.spec.replace(aggregation="mean_logit")), before)
    with pytest.raises(CheckpointError, match="of another spec: its topology is"):
        load_checkpoint(tmp_path, expected=PRESETS["treenet"](MLP))


def test_values_where_nothing_is_active_are_not_dropped_in_silence(tmp_path: Path) -> None:
    before = trained(PRESETS["neurotrails"](MLP))
    values = {name: value + 1 for name, value in before.values.items()}
    with pytest.raises(CheckpointError, match="inactive elements are not 0"):
        save_checkpoint(tmp_path, replace(before, values=values))


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_checkpoint(tmp_path, trained(PRESETS["neurotrails"](MLP)))
    assert list(tmp_path.iterdir()) == []


# Arrays from anywhere.


def forge(folder: Path, change: Callable[[dict[str, NDArray[Any]]], object]) -> None:
    """Alter the tensors and make the config agree, as an attacker or a buggy writer would."""
    tensors = load_file(folder / TENSORS)
    change(tensors)
    save_file(tensors, folder / TENSORS)
    config = json.loads((folder / CONFIG).read_text())
    config["tensors_sha256"] = hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest()
    del config["config_sha256"]
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    (folder / CONFIG).write_text(json.dumps({**config, "config_sha256": digest}))


NAME = "backbone/hidden1/linear1.weight"  # (4, 5)


def put(
    part: str, make: Callable[[NDArray[Any]], NDArray[Any]]
) -> Callable[[dict[str, NDArray[Any]]], object]:
    return lambda tensors: tensors.update({f"{NAME}.{part}": make(tensors[f"{NAME}.{part}"])})


def edited(array: NDArray[Any], where: Any, value: Any) -> NDArray[Any]:
    array = array.copy()
    array[where] = value
    return array


FORGERIES: Mapping[str, tuple[Callable[[dict[str, NDArray[Any]]], object], str]] = {
    "columns unsorted": (put("indices", lambda a: a[::-1].copy()), "no CSR array"),
    "columns doubled": (put("indices", lambda a: np.zeros_like(a)), "no CSR array"),
    "column out of range": (put("indices", lambda a: edited(a, -1, 5)), "columns below 5"),
    "column negative": (put("indices", lambda a: edited(a.astype(np.int8), 0, -1)), "columns below 5"),
    "column far out of range": (
        put("indices", lambda a: edited(a.astype(np.uint64), 0, 2**63)),
        "columns below 5",
    ),
    "columns too few": (put("indices", lambda a: a[:-1]), "no CSR array"),
    "columns no integers": (put("indices", lambda a: a.astype(np.float32)), "expected integers"),
    "columns a matrix": (put("indices", lambda a: a[None]), "a list of columns"),
    "rows do not begin at 0": (put("indptr", lambda a: edited(a, 0, 1)), "4 rows"),
    "rows fall": (put("indptr", lambda a: edited(a, 1, a[-1] + 1)), "4 rows"),
    "rows end elsewhere": (put("indptr", lambda a: edited(a, -1, a[-1] + 1)), "4 rows"),
    "rows too few": (put("indptr", lambda a: a[:-1]), "5 row starts"),
    "rows none": (put("indptr", lambda a: a[:0]), "5 row starts"),
    "rows no integers": (put("indptr", lambda a: a.astype(np.float64)), "expected integers"),
    "values too few": (put("values", lambda a: a[:-1]), "values, found shape"),
    "values one for all": (put("values", lambda a: a[:1]), "values, found shape"),
    "values a matrix": (put("values", lambda a: a[None]), "values, found shape"),
    "values missing": (
        lambda t: t.pop(f"{NAME}.values"),
        "'backbone/hidden1/linear1.weight.values' is missing",
    ),
    "a weight missing": (lambda t: t.pop("head1/classifier/linear1.bias"), "is missing"),
    "a weight too many": (
        lambda t: t.update(extra=np.zeros(1)),
        "holds 'extra', which the spec has no place for",
    ),
    "a weight twice": (
        lambda t: t.update({NAME: np.zeros((4, 5), np.float32)}),
        "which the spec has no place for",
    ),
    "another shape": (
        lambda t: t.update({"head1/classifier/linear1.bias": np.zeros((2, 1), np.float32)}),
        r"expected shape \(2,\), found \(2, 1\)",
    ),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_arrays_are_an_error(copied: Path, forgery: str) -> None:
    change, message = FORGERIES[forgery]
    forge(copied, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(copied)
    assert str(copied / TENSORS) in str(caught.value)


def test_a_forgery_that_changes_nothing_loads(copied: Path, saved: Any) -> None:
    forge(copied, lambda tensors: None)
    assert_same(load_checkpoint(copied), saved[1])


@given(masks(), st.sampled_from([np.int64, np.uint32, np.int32]))
def test_csr_arrays_of_a_mask_make_that_mask(mask: Mask, dtype: Any) -> None:
    assert mask_of_csr(mask.shape, mask.indptr.astype(dtype), mask.indices.astype(dtype)) == mask


@settings(max_examples=300)
@given(masks(), st.integers(-2, 400), st.data())
def test_csr_arrays_altered_anywhere_are_an_error_or_another_good_mask(
    mask: Mask, value: int, data: st.DataObject
) -> None:
    arrays = [mask.indptr.copy(), mask.indices.astype(np.int64)]
    which = data.draw(st.integers(0, 1)) if mask.count else 0
    arrays[which][data.draw(st.integers(0, arrays[which].size - 1))] = value
    try:
        found = mask_of_csr(mask.shape, *arrays)
    except ValueError:
        return
    np.testing.assert_array_equal(found.indptr, arrays[0])
    np.testing.assert_array_equal(found.indices, arrays[1])
    assert Mask.from_dense(found.dense()) == found


# Writing.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda v, m: v.pop("head1/classifier/linear1.bias"),
            r"'head1/classifier/linear1.bias': expected an array of shape \(5,\), found None",
        ),
        (
            lambda v, m: v.update({"head1/classifier/linear1.bias": np.zeros((5, 1))}),
            r"expected an array of shape \(5,\), found \(5, 1\)",
        ),
        (
            lambda v, m: m.update({"head1/classifier/linear1.weight": Mask.full((6, 5))}),
            r"expected a mask of shape \(5, 6\), found \(6, 5\)",
        ),
    ],
)
def test_what_does_not_fit_the_spec_is_not_written(tmp_path: Path, change: Any, message: str) -> None:
    before = trained(PRESETS["neurotrails"](MLP))
    values, found = dict(before.values), dict(before.masks)
    change(values, found)
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(tmp_path / "run", Checkpoint(spec=before.spec, values=values, masks=found))
    assert not (tmp_path / "run").exists()


class CrashError(Exception):
    pass


def crash_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Let the ``call``-th of all syncs and renames fail."""
    calls: Iterator[int] = iter(range(100))

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == call:
                raise CrashError
            return real(*args, **kwargs)

        return wrapped

    for owner, name in ((os, "fsync"), (os, "replace"), (Path, "replace"), (os, "rename")):
        monkeypatch.setattr(owner, name, failing(getattr(owner, name)))


LAST_SYNC = 7
"""The folder's, after which nothing more can fail: the new checkpoint is there."""


@pytest.mark.parametrize("call", range(LAST_SYNC + 1))
def test_a_crash_while_writing_leaves_the_old_checkpoint_the_new_or_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    old, new = trained(PRESETS["neurotrails"](MLP), 1), trained(PRESETS["neurotrails"](MLP), 2)
    save_checkpoint(tmp_path, old)
    with monkeypatch.context() as patch:
        crash_at(patch, call)
        try:
            save_checkpoint(tmp_path, new)
            crashed = False
        except CrashError:
            crashed = True
    found, error = attempt(tmp_path)
    if found is None:
        assert "truncated or altered" in error
        assert crashed
    else:
        assert_same(found, old if crashed and call < LAST_SYNC else new)
    assert not list(tmp_path.glob("*.tmp"))
    assert not list(tmp_path.glob(".*"))
    save_checkpoint(tmp_path, new)
    assert_same(load_checkpoint(tmp_path), new)


def test_crashes_are_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash_at(monkeypatch, 0)
    with pytest.raises(CrashError):
        save_checkpoint(tmp_path, trained(PRESETS["single"](MLP)))


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    for call in range(2):
        with monkeypatch.context() as patch:
            crash_at(patch, call)
            with pytest.raises(CrashError):
                write_atomically(path, b"new")
        assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_saving_changes_neither_values_nor_masks(tmp_path: Path) -> None:
    before = trained(PRESETS["neurotrails"](MLP))
    again = trained(PRESETS["neurotrails"](MLP))
    for value in before.values.values():
        value.setflags(write=False)
    save_checkpoint(tmp_path, before)
    assert_same(before, again)


def test_there_is_no_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("pickle was used")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    before = trained(PRESETS["neurotrails"](MLP))
    save_checkpoint(tmp_path, before)
    assert_same(load_checkpoint(tmp_path), before)
    imported = {
        alias.name
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        for alias in getattr(node, "names", [])
    }
    assert not imported & {"pickle", "dill", "cloudpickle", "joblib", "torch", "marshal"}
