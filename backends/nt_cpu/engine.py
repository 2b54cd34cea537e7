"""Engine that computes a trained ensemble's predictions on a CPU."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nt_core import DataError, EnsembleSpec, GraphError, Tokens
from nt_core.checkpoint import Checkpoint, Values, aggregation_of, load_checkpoint
from nt_core.metrics import Aggregation, aggregate
from nt_core.reference import forward
from nt_cpu.code import Program, batch_of, program
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
        threads: number of threads for one batch.
        aggregation: of members' predictions; None: the fitted aggregation in the checkpoint's record, else
            the mean that the spec names.

    Raises:
        CheckpointError: as :func:`nt_core.load_checkpoint`.
        DataError: ``batch`` or ``threads`` is not positive.

    Example:
        >>> import nt_core, nt_models
        >>> spec = nt_core.PRESETS["full_ensemble"](nt_models.mlp(inputs=8, hidden=(16,), classes=3))
        >>> values = dict(nt_core.initial_values(spec.layout, seed=0))
        >>> engine = compile((spec, values), batch=4)
        >>> engine(np.zeros((10, 8), np.float32)).shape, engine.heads(np.zeros((1, 8), np.float32)).shape
        ((10, 3), (3, 1, 3))
    """
    expect_positive(batch=batch, threads=threads)
    if isinstance(trained, tuple):
        saved = Checkpoint(spec=trained[0], values=trained[1], masks={})
    else:
        saved = trained if isinstance(trained, Checkpoint) else load_checkpoint(trained)
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


def expect_positive(**counts: int) -> None:
    """Check that every count is positive.

    Raises:
        DataError: a count is not positive; the message names the first.
    """
    for name, count in counts.items():
        if count < 1:
            raise DataError(f"{name}: expected at least 1, found {count}")


class Engine:
    """Compiled ensemble, made by :func:`compile` or :func:`load`; several Python threads may call it at once.

    Attributes:
        spec: of the ensemble.
        batch: usual number of examples of a call.
        threads: number of threads for one batch.
        aggregation: of members' predictions.
        record: of the trainer, if the weights came from a run.
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
        self.kernels = None if program is None else kernels()
        self._native = None if program is None or self.kernels is None else NativeProgram(program, threads)
        if self._native is not None:
            inputs, outputs = math.prod(spec.layout.input_shape), math.prod(spec.graph.output_shape)
            self._native.expect_shapes(inputs, spec.members, outputs)
        self._values = values if self._native is None else {}

    def __call__(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Return the ensemble's probabilities. (N, *input shape) → (N, …, classes)."""
        return self.probabilities(self.heads(inputs))

    def probabilities(self, logits: NDArray[Any]) -> NDArray[np.float32]:
        """Aggregate every member's logits. (M, N, …, classes) → (N, …, classes)."""
        flat = logits.reshape(len(logits), -1, logits.shape[-1])
        found = np.exp(aggregate(flat, self.aggregation)).astype(np.float32)
        return found.reshape(logits.shape[1:])

    def heads(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Compute every member's logits. (N, *input shape) → (M, N, …).

        Raises:
            DataError: inputs have another shape.
        """
        expected = self.spec.layout.input_shape
        inputs = np.asarray(inputs)
        if inputs.shape[1:] != expected or not inputs.ndim:
            raise DataError(
                f"input: expected shape (batch, {', '.join(map(str, expected))}), found {inputs.shape}; "
                "images are (batch, channels, height, width)"
            )
        if isinstance(self.spec.graph.input, Tokens):
            inputs = self.spec.graph.input.whole(inputs)
        if self._native is None:
            return forward(self.spec.layout, self._values, inputs).astype(np.float32, copy=False)
        given = np.require(inputs, np.float32, ["C", "ALIGNED"])
        found = np.empty((self.spec.members, len(given), *self.spec.graph.output_shape), np.float32)
        if len(given):
            self._native.run(given, found)
        return found
