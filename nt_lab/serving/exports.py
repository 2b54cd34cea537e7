"""Export of a run as one file: packed for the sparse engine, or ONNX for other runtimes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nt_core.checkpoint import load_checkpoint
from nt_core.errors import NeuroTrailsError
from nt_lab.runs.backends import installed


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported file.

    Attributes:
        file: path of the file.
        bytes: size of the file.
        checked: the runtime in which the file was loaded, or run and compared; None: no runtime is installed.
        missing: the runtime that would have checked the file, but is not installed.
        differs: the largest difference of a logit there from the sparse engine's, relative to the largest.
    """

    file: str
    bytes: int
    checked: str | None = None
    missing: str | None = None
    differs: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields in types that JSON can hold."""
        return asdict(self)

    def sentence(self) -> str:
        """Return size and check of the file as a sentence."""
        size = f"{self.file}: {self.bytes / 1e6:.1f} MB"
        if self.checked is None:
            return f"{size}; not checked: {self.missing} is not installed"
        if self.differs is None:
            return f"{size}, loaded again by {self.checked}"
        return f"{size}, run in {self.checked}: logits differ by at most {self.differs:.1e} of the largest"


def to_cpu(run: Path, file: Path, *, batch: int) -> Exported:
    """Pack a run for the sparse engine; see :func:`nt_cpu.pack`.

    Raises:
        CheckpointError: the folder holds no run, or the run cannot be packed.
    """
    import nt_cpu
    from nt_cpu.native import kernels

    nt_cpu.pack(nt_cpu.compile(run, batch=batch), file)
    if kernels() is None:
        return Exported(file=str(file), bytes=file.stat().st_size, missing="neurotrails-cpu")
    nt_cpu.load(file)
    return Exported(file=str(file), bytes=file.stat().st_size, checked="nt_cpu")


def to_onnx(run: Path, file: Path, *, raw: bool = False) -> Exported:
    """Write a run as ONNX, and run it in ONNX Runtime if that is installed; see :func:`nt_onnx.export`.

    Raises:
        CheckpointError: the folder holds no run, or the file cannot be written.
        NeuroTrailsError: the package ``onnx`` is not installed, or the logits of ONNX Runtime differ.
    """
    if not installed("onnx"):
        raise NeuroTrailsError("nt export --to onnx: onnx is not installed; pip install 'neurotrails[onnx]'")
    import nt_onnx

    saved = load_checkpoint(run)
    nt_onnx.export(saved, file, raw=raw)
    beside = file.with_name(f"{file.name}.data")
    size = file.stat().st_size + (beside.stat().st_size if beside.exists() else 0)
    if not installed("onnxruntime"):
        return Exported(file=str(file), bytes=size, missing="onnxruntime")
    import onnxruntime

    import nt_cpu
    from nt_lab.serving.serve import examples, raw_examples

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    engine = nt_cpu.compile(saved)
    worst = 0.0
    for batch in (1, 3):
        inputs = examples(saved.spec, batch)
        if raw and engine.preprocessing is not None:
            inputs = raw_examples(engine.preprocessing, batch)
        truth = engine.heads(engine.prepare(inputs) if raw else inputs)
        found = session.run(["heads"], {"input": inputs})[0]
        worst = max(worst, float(np.abs(found - truth).max() / max(np.abs(truth).max(), 1e-30)))
    version = f"ONNX Runtime {onnxruntime.__version__}"
    if not worst < 1e-3:
        raise NeuroTrailsError(
            f"{file}: {version} computes other logits, by {worst:.1e} of the largest; do not serve this "
            "file, and report the network"
        )
    return Exported(file=str(file), bytes=size, checked=version, differs=worst)
