"""Engine that computes a trained ensemble's predictions on a CPU."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nt_core import DataError, EnsembleSpec, GraphError, Image, NeuroTrailsError
from nt_core.checkpoint import (
    Checkpoint,
    Values,
    aggregation_of,
    classes_of,
    load_checkpoint,
    preprocessing_of,
)
from nt_core.errors import NotFiniteError
from nt_core.metrics import Aggregation, aggregate
from nt_core.reference import forward
from nt_cpu.code import Program, batch_of, program
from nt_cpu.inputs import examples, expect_counts, numbers
from nt_cpu.native import NativeProgram, kernels
from nt_cpu.network import network

NOT_INSTALLED: Final = (
    "nt_cpu: its compiled kernels are not installed: pip install neurotrails-cpu, or "
    "./backends/nt_cpu_native of a checkout"
)


def compile(  # noqa: A001
    trained: str | Path | Checkpoint | tuple[EnsembleSpec, Values],
    *,
    batch: int = 1,
    threads: int = 1,
    aggregation: Aggregation | None = None,
) -> Engine:
    """Compile a trained ensemble for inference on a CPU.

    Args:
        trained: a checkpoint directory, or the checkpoint loaded from one; or a spec and every weight by its
            full name, with exact zeros where a connection is inactive.
        batch: usual number of examples of a call, for which the program is optimised; a call takes any
            number.
        threads: number of threads for one batch, at most 1024.
        aggregation: of members' predictions; None: the fitted aggregation in the checkpoint's record, else
            the mean that the spec names.

    Raises:
        CheckpointError: as :func:`nt_core.load_checkpoint`.
        DataError: ``batch`` or ``threads`` is out of range.
        NotFiniteError: a weight is NaN or infinite.

    Example:
        >>> import nt_core, nt_models
        >>> spec = nt_core.PRESETS["full_ensemble"](nt_models.mlp(inputs=8, hidden=(16,), classes=3))
        >>> values = dict(nt_core.initial_values(spec.layout, seed=0))
        >>> engine = compile((spec, values), batch=4)
        >>> engine(np.zeros((10, 8), np.float32)).shape, engine.heads(np.zeros((1, 8), np.float32)).shape
        ((10, 3), (3, 1, 3))
    """
    expect_counts(batch=batch, threads=threads)
    if isinstance(trained, tuple):
        saved = Checkpoint(spec=trained[0], values=trained[1], masks={})
    else:
        saved = trained if isinstance(trained, Checkpoint) else load_checkpoint(trained)
    _expect_finite(saved.values)
    how = aggregation or aggregation_of(saved.spec, saved.record)
    written = None
    try:
        lowered = network(saved.spec.layout, saved.values)
        written = program(lowered, batch_of(lowered, batch))
    except GraphError as error:
        warnings.warn(f"{error}; NumPy computes instead, slowly", stacklevel=2)
    if kernels() is None:
        warnings.warn(f"{NOT_INSTALLED}; NumPy computes instead, slowly", stacklevel=2)
    return Engine(
        saved.spec,
        written,
        batch=batch,
        threads=threads,
        aggregation=how,
        values=saved.values,
        record=saved.record,
    )


def _expect_finite(values: Values) -> None:
    """Check the weights: NaN behind an inactive connection would be skipped, and its logits look sound."""
    for name, value in values.items():
        if not np.isfinite(np.asarray(value, np.float32)).all():
            raise NotFiniteError(
                f"{name}: holds NaN or infinity: the training diverged; use an earlier state"
            )


class Engine:
    """Compiled ensemble, made by :func:`compile` or :func:`load`; several Python threads may call it at once.

    An engine answers after a fork. A pickle of it holds the path and the checksum of the file that it was
    loaded from, or its whole program if it was compiled in memory.

    Attributes:
        spec: of the ensemble.
        batch: usual number of examples of a call.
        threads: number of threads for one batch.
        aggregation: of members' predictions.
        record: of the trainer, if the weights came from a run.
        classes: names of the classes, in the order of probabilities; None: none are recorded.
        preprocessing: of raw inputs; None: none is recorded.
        program: of the native kernels; None where they cannot compute the network.
        kernels: the instruction set of the native kernels: ``"avx512"``, ``"avx2"`` or ``"portable"``; None
            where NumPy computes instead.
    """

    def __init__(
        self,
        spec: EnsembleSpec,
        program: Program | None,
        *,
        batch: int,
        threads: int,
        aggregation: Aggregation,
        values: Values,
        record: Mapping[str, Any],
    ) -> None:
        self.spec, self.program, self.aggregation, self.record = spec, program, aggregation, record
        self.batch, self.threads = batch, threads
        self.classes, self.preprocessing = classes_of(record), preprocessing_of(spec, record)
        self._values = values
        self._open()

    def _open(self) -> None:
        """Hand the program to the native kernels, if both are there; NumPy then needs the weights no more."""
        spec, program = self.spec, self.program
        self.kernels = None if program is None else kernels()
        self._native = (
            None if program is None or self.kernels is None else NativeProgram(program, self.threads)
        )
        if self._native is not None:
            inputs, outputs = math.prod(spec.layout.input_shape), math.prod(spec.graph.output_shape)
            self._native.expect_shapes(inputs, spec.members, outputs)
            self._values = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_native"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()
        if self._native is None and not self._values:
            raise NeuroTrailsError(NOT_INSTALLED)

    def __repr__(self) -> str:
        given, found = ("×".join(map(str, shape)) for shape in (self.spec.graph.input.shape, self._output))
        by = "NumPy" if self._native is None else f"the {self.kernels} kernels"
        return (
            f"<Engine: {given} → {found}, {_count(self.spec.members, 'member')}, by {by}, "
            f"for batches of {self.batch}, {_count(self.threads, 'thread')}>"
        )

    @property
    def _output(self) -> tuple[int, ...]:
        return self.spec.graph.output_shape

    def __call__(self, inputs: NDArray[Any] | Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """Return the ensemble's probabilities. (N, *input shape) → (N, …, classes).

        Args:
            inputs: floats as the network reads them, that is normalised, of shape (N, *input shape); or raw
                examples in whole numbers, images of uint8 say, as for :meth:`prepare`, also as a list of
                images of several sizes; or tokens.

        Raises:
            DataError: as :meth:`heads`.
        """
        doubt = self._doubt(inputs)
        if doubt is not None:
            warnings.warn(f"input: {doubt}", stacklevel=2)
        return self.probabilities(self.heads(inputs))

    def _doubt(self, inputs: NDArray[Any] | Sequence[NDArray[Any]]) -> str | None:
        """Return why inputs are hardly what the network reads, although they have its shape."""
        if not isinstance(inputs, np.ndarray) or not self._fits(inputs):
            return None
        if self.preprocessing is None:
            raw = inputs.dtype == np.uint8 and isinstance(self.spec.graph.input, Image)
            unknown = "bytes are taken as they are, because no normalisation is recorded with this model"
            return unknown if raw else None
        found = self.preprocessing.outside(inputs) if inputs.dtype.kind == "f" else None
        remedy = "give raw images as uint8, or what is raw to engine.prepare"
        return found and f"floats are taken as normalised already, but {found}; {remedy}"

    def _fits(self, inputs: NDArray[Any]) -> bool:
        return inputs.ndim > 0 and inputs.shape[1:] == self.spec.layout.input_shape

    def prepare(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Return raw examples as the network reads them: resized and normalised as in its training.

        Args:
            raw: images as a camera gives them, uint8 (N, C, H, W) or (N, H, W, C), or a single one, or grey
                ones without channels; of any size where the training resized images. Or vectors in the units
                of the training data.

        Returns:
            (N, *input shape) float32.

        Raises:
            DataError: raw examples of another shape; or no preprocessing is recorded.
        """
        if self.preprocessing is None:
            raise DataError(
                "input: no preprocessing of raw inputs is recorded with this model; give what the network "
                "reads, as floats"
            )
        return self.preprocessing.inputs(raw, self.spec.layout.input_shape)

    def probabilities(self, logits: NDArray[Any]) -> NDArray[np.float32]:
        """Aggregate every member's logits. (M, N, …, classes) → (N, …, classes)."""
        flat = logits.reshape(len(logits), -1, logits.shape[-1])
        found = np.exp(aggregate(flat, self.aggregation)).astype(np.float32)
        return found.reshape(logits.shape[1:])

    def heads(self, inputs: NDArray[Any] | Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """Compute every member's logits. (N, *input shape) → (M, N, …).

        All logits of an example with NaN or infinity are NaN, even if its inputs have no connections.

        Args:
            inputs: as for a call of the engine; the range of floats is not looked at.

        Raises:
            DataError: inputs are no real numbers, have another shape, or are tokens outside the vocabulary.
        """
        if isinstance(inputs, list | tuple) and _are_images(inputs):
            return np.concatenate([self.heads(each) for each in inputs], axis=1)
        found = numbers(inputs)
        if self.preprocessing is not None and found.dtype.kind in "iu":
            found = self.prepare(found)
        found = examples(found, self.spec.layout)
        if self._native is None:
            logits = forward(self.spec.layout, self._values, found).astype(np.float32, copy=False)
            logits[:, ~np.isfinite(found).all(axis=tuple(range(1, found.ndim)))] = np.nan
            return logits
        given = np.require(found, np.float32, ["C", "ALIGNED"])
        logits = np.empty((self.spec.members, len(given), *self.spec.graph.output_shape), np.float32)
        if len(given):
            self._native.run(given, logits)
        return logits


def _are_images(inputs: Sequence[NDArray[Any]]) -> bool:
    return len(inputs) > 0 and all(getattr(each, "dtype", None) == np.uint8 for each in inputs)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
