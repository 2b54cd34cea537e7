"""One function for each reader of files that others may have made: it writes bytes into a file and reads it.

Whatever the bytes are, only :class:`NeuroTrailsError` may come out. Checksums guard against accidents, not
against people, who would write the right ones: here they are put right before reading, so that what lies
behind them is met. Where a format has several parts, NUL bytes lie between them: JSON holds none.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("HF_DATASETS_CACHE", tempfile.mkdtemp(prefix="neurotrails-fuzz-"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import numpy as np
from safetensors.numpy import load_file

import nt_cpu
import nt_models
from nt_core import NeuroTrailsError
from nt_core.checkpoint import CONFIG, load_checkpoint
from nt_core.checkpoint.directory import _config_sha256
from nt_core.files import TENSORS, stored_tensors
from nt_core.files.tensors import MAPPED
from nt_core.spec import read_spec
from nt_core.states.file import _digest as state_digest
from nt_core.states.file import read_state
from nt_core.training import Data
from nt_cpu.code import Program
from nt_cpu.packed import _digest as packed_digest
from nt_lab.data import load
from nt_lab.data.decode import reader, resized
from nt_lab.data.text import read_text
from nt_lab.data.tokenizer import open_tokenizer
from nt_lab.runs.architectures import ARCHITECTURES
from nt_lab.runs.folder import HISTORY, RunFolder, flat, row
from nt_models.huggingface.folder import load_llama
from tests.fuzz.programs import expect_no_leak

Consume = Callable[[bytes, Path], object]

MOST_FLOATS: Final = 1 << 22
"""A model that is read is also run if its working memory is no larger."""


def spec_yaml(data: bytes, folder: Path) -> object:
    (folder / "spec.yaml").write_bytes(data)
    return read_spec(folder / "spec.yaml", nt_models.ARCHITECTURES)


def spec_json(data: bytes, folder: Path) -> object:
    (folder / "spec.json").write_bytes(data)
    return read_spec(folder / "spec.json", ARCHITECTURES)


def tensors(data: bytes, folder: Path) -> object:
    """A safetensors file: its header and its tensors."""
    header, body = parts(data, 2)
    (folder / TENSORS).write_bytes(safetensors_of(header, body))
    found = stored_tensors(folder).values()
    return [each.map() if each.dtype in MAPPED else each.read() for each in found]


def checkpoint(data: bytes, folder: Path) -> object:
    """``config.json``, the header of ``model.safetensors``, its tensors; and its line in a comparison."""
    config, header, body = parts(data, 3)
    content = safetensors_of(header, body)
    (folder / TENSORS).write_bytes(content)
    (folder / CONFIG).write_bytes(signed(config, content))
    found = None
    try:
        found = load_checkpoint(folder)
    finally:
        flat(row(RunFolder(folder).record()))
    return found


def state(data: bytes, folder: Path) -> object:
    """What a state holds besides arrays, the header of its arrays, its arrays."""
    about, header, body = parts(data, 3)
    path, text = folder / "step-000000001.safetensors", about.decode(errors="replace")
    path.write_bytes(safetensors_of(header, body))
    try:
        digest = state_digest(text, load_file(path))
    except Exception:  # then the reader must say so
        digest = ""
    path.write_bytes(safetensors_of(header, body, {"neurotrails_state": text, "sha256": digest}))
    return read_state(path)


def packed(data: bytes, folder: Path) -> object:
    """What a packed file says of itself, the header of its tensors, its tensors; small models are run."""
    about, header, body = parts(data, 3)
    path, text = folder / "model.nt", about.decode(errors="replace")
    (folder / TENSORS).write_bytes(safetensors_of(header, body))
    try:
        found = stored_tensors(folder)
        digest = packed_digest(text, Program(found["code"].map(), found["blob"].map()))
    except Exception:  # then the reader must say so
        digest = ""
    path.write_bytes(safetensors_of(header, body, {"packed": text, "sha256": digest}))
    engine = nt_cpu.load(path)
    spec = engine.spec
    if engine.program is not None and int(engine.program.code[3]) <= MOST_FLOATS and spec.members < 99:
        shape = (3, *spec.layout.input_shape)
        if np.prod([float(n) for n in (*shape, *spec.graph.output_shape)]) < MOST_FLOATS:
            x = np.zeros(shape, np.float32)
            engine(x)
            expect_no_leak(engine._native, x, spec.members, int(np.prod(spec.graph.output_shape)))
    return engine


def history(data: bytes, folder: Path) -> object:
    (folder / HISTORY).write_bytes(data)
    return RunFolder(folder).history()


def huggingface(data: bytes, folder: Path) -> object:
    """``config.json``, the header of ``model.safetensors``, its tensors."""
    config, header, body = parts(data, 3)
    (folder / CONFIG).write_bytes(config)
    (folder / TENSORS).write_bytes(safetensors_of(header, body))
    return load_llama(folder)


def image(data: bytes, folder: Path) -> object:
    """An image in a dataset, once as it must fit the graph and once made to."""
    dataset = datasets.Dataset.from_dict(
        {"img": [{"bytes": data, "path": None}]}, features=datasets.Features(img=datasets.Image())
    )
    graph = small_network()
    reader(dataset, "img", graph, "images", resized(graph))(np.zeros(1, np.int64))
    return reader(dataset, "img", graph, "images")(np.zeros(1, np.int64))


def parquet(data: bytes, folder: Path) -> object:
    source = folder / hashlib.sha256(data).hexdigest()  # datasets caches by path
    source.mkdir(exist_ok=True)
    for split in ("train", "test"):
        (source / f"{split}.parquet").write_bytes(data)
    return load(Data(source=str(source)), small_network(), seed=0)


def text(data: bytes, folder: Path) -> object:
    (folder / "a.txt").write_bytes(data)
    return read_text(f"text:{folder}", open_tokenizer("bytes"))


def tokenizer(data: bytes, folder: Path) -> object:
    (folder / "tokenizer.json").write_bytes(data)
    return open_tokenizer(str(folder / "tokenizer.json")).encode(b"to be or not to be", "a line")


READERS: Final[Mapping[str, Consume]] = {
    each.__name__: each
    for each in (
        spec_yaml,
        spec_json,
        tensors,
        checkpoint,
        state,
        packed,
        history,
        huggingface,
        image,
        parquet,
        text,
        tokenizer,
    )
}


def consume(name: str, data: bytes, folder: Path) -> BaseException | None:
    """Let a reader read; return the error it rightly raised, None if it read all."""
    try:
        READERS[name](data, folder)
    except NeuroTrailsError as error:
        return error
    return None


# Files of several parts.


def parts(data: bytes, count: int) -> list[bytes]:
    found = data.split(b"\0", count - 1)
    return found + [b""] * (count - len(found))


def safetensors_of(header: bytes, body: bytes, metadata: Mapping[str, str] | None = None) -> bytes:
    """Put a file together, with metadata if its header is JSON."""
    if metadata is not None:
        with suppress(ValueError, TypeError, RecursionError):
            header = json.dumps({"__metadata__": metadata, **json.loads(header)}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + body


def split_safetensors(content: bytes) -> tuple[bytes, bytes]:
    """Take a file apart, its metadata left out."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header.pop("__metadata__", None)
    return json.dumps(header).encode(), content[8 + size :]


def signed(config: bytes, content: bytes) -> bytes:
    """Put the checksums of a checkpoint's configuration right, if it is JSON."""
    try:
        found = json.loads(config)
        found.pop("config_sha256", None)
        found["tensors_sha256"] = hashlib.sha256(content).hexdigest()
        return json.dumps({**found, "config_sha256": _config_sha256(found)}).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return config


@cache
def small_network() -> Any:
    return nt_models.wide_resnet(depth=10, width=1, classes=4, size=8, channels=3)


def png(size: tuple[int, int], mode: str = "RGB") -> bytes:
    from PIL import Image

    content = BytesIO()
    Image.new(mode, size).save(content, "PNG")
    return content.getvalue()
