"""Dense runtimes on CPUs, as the baselines of sparse inference."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nt_core.checkpoint import Checkpoint
from nt_lab.runs.backends import installed

Call = Callable[[NDArray[Any]], NDArray[np.float32]]
"""Inputs (B, …) → every member's logits (M, B, …)."""


class Dense:
    """A trained ensemble with dense weights, zeros included, for any of :data:`RUNTIMES`.

    Args:
        saved: checkpoint of the ensemble.
    """

    def __init__(self, saved: Checkpoint) -> None:
        self.saved = saved
        self._stack = ExitStack()

    def __enter__(self) -> Dense:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @cached_property
    def onnx_file(self) -> Path:
        """The ensemble as an ONNX file, which stays on disk until the ``with`` ends."""
        import nt_onnx

        folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        file = Path(folder) / "dense.onnx"
        nt_onnx.export(self.saved, file)
        return file

    def module(self) -> Any:
        """Return the ensemble as a module of PyTorch, in evaluation mode."""
        from nt_torch.checkpoint import restore

        return restore(self.saved)


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A runtime for dense networks.

    Attributes:
        packages: the needed packages; the first one's version is reported.
        start: (network, threads) → a function of inputs that returns logits.
    """

    packages: tuple[str, ...]
    start: Callable[[Dense, int], Call]

    @property
    def present(self) -> bool:
        """Whether all needed packages are installed."""
        return all(map(installed, self.packages))

    @property
    def version(self) -> str:
        """Version of the first package."""
        return metadata.version(self.packages[0])


def _torch(dense: Dense, threads: int) -> Call:
    import torch

    module = dense.module()

    def call(inputs: NDArray[Any]) -> NDArray[np.float32]:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(inputs)).numpy())

    return call


def _torch_compile(dense: Dense, threads: int) -> Call:
    """Compile with freezing: weights become constants that are laid out once."""
    import torch

    config = import_module("torch._inductor.config")
    compiled: Any = torch.compile(dense.module(), dynamic=False)

    def call(inputs: NDArray[Any]) -> NDArray[np.float32]:
        torch.set_num_threads(threads)
        with torch.no_grad(), config.patch(freezing=True):
            return np.asarray(compiled(torch.from_numpy(inputs)).numpy())

    return call


def _onnxruntime(dense: Dense, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(dense.onnx_file, options, providers=["CPUExecutionProvider"])
    return lambda inputs: np.asarray(session.run(["heads"], {"input": inputs})[0])


def _openvino(dense: Dense, threads: int) -> Call:
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    model = core.read_model(dense.onnx_file)
    compiled: dict[int, Any] = {}

    def call(inputs: NDArray[Any]) -> NDArray[np.float32]:
        if len(inputs) not in compiled:  # a fixed batch is faster than any
            model.reshape([len(inputs), *inputs.shape[1:]])
            compiled[len(inputs)] = core.compile_model(model, "CPU", settings)
        return np.array(compiled[len(inputs)](inputs)["heads"])

    return call


RUNTIMES: Final[Mapping[str, Runtime]] = {
    "torch": Runtime(packages=("torch", "accelerate"), start=_torch),
    "torch.compile": Runtime(packages=("torch", "accelerate"), start=_torch_compile),
    "onnxruntime": Runtime(packages=("onnxruntime", "onnx"), start=_onnxruntime),
    "openvino": Runtime(packages=("openvino", "onnx"), start=_openvino),
}
"""All known dense runtimes by name, installed or not."""
