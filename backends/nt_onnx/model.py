"""Export of an ensemble as an ONNX file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from onnx import ModelProto, TensorProto, checker, helper, save_model

import nt_core
from nt_core import CheckpointError, EnsembleSpec, Tokens
from nt_core.checkpoint import STACKED, Checkpoint, Values, aggregation_of, load_checkpoint, unroll
from nt_core.files import write_atomically
from nt_core.graph import INPUT
from nt_core.metrics import Aggregation, Fitted
from nt_core.structure import Layout
from nt_onnx.lowering import LOWERINGS
from nt_onnx.writer import Writer

OPSET: Final = 20
"""The first opset that has Gelu."""

IR_VERSION: Final = 9
"""Version of the file format released with that opset, because runtimes refuse newer versions."""

LARGEST_BYTES: Final = 2**31 - 2**20
"""Largest size of one ONNX file; the weights of a larger model are in a file beside it."""

INPUT_NAME, HEADS, MEAN = "input", "heads", "mean"


def export(
    trained: str | Path | Checkpoint | tuple[EnsembleSpec, Values],
    file: str | Path,
    *,
    aggregation: Aggregation | None = None,
) -> None:
    """Write a trained ensemble as ONNX: dynamic batch, input ``input``, outputs ``heads`` and ``mean``.

    ``heads`` (M, B, …, classes) are every member's logits, ``mean`` (B, …, classes) the ensemble's
    probabilities. Inputs are float32, tokens int64. Weights are stored dense, with exact zeros: ONNX runtimes
    multiply them. The metadata hold the spec.

    Args:
        trained: a checkpoint directory, or the checkpoint loaded from one; or a spec and every weight by its
            full name.
        file: the file to write; weights of more than 2 GB are in ``FILE.data`` beside it.
        aggregation: of members' predictions; None: the fitted aggregation in the checkpoint's record, else
            the mean that the spec names.

    Raises:
        CheckpointError: as :func:`nt_core.load_checkpoint`; or the file cannot be written.
    """
    if isinstance(trained, tuple):
        saved = Checkpoint(spec=trained[0], values=trained[1], masks={})
    else:
        saved = trained if isinstance(trained, Checkpoint) else load_checkpoint(trained)
    made = model(saved.spec, saved.values, aggregation or aggregation_of(saved.spec, saved.record))
    path = Path(file)
    try:
        if made.ByteSize() > LARGEST_BYTES:
            save_model(made, path, save_as_external_data=True, location=f"{path.name}.data")
            checker.check_model(str(path))
        else:
            checker.check_model(made)
            write_atomically(path, made.SerializeToString())
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be written ({error.strerror}); save elsewhere") from None


def model(spec: EnsembleSpec, values: Values, aggregation: Aggregation) -> ModelProto:
    """Return the ONNX model of an ensemble.

    Args:
        spec: of the ensemble.
        values: full name → array.
        aggregation: of members' predictions.
    """
    layout, writer = spec.layout, Writer()
    unrolled = unroll(layout, values)
    names = {INPUT: INPUT_NAME, STACKED: STACKED}
    if layout.along == "channels":
        writer.add("Concat", [INPUT_NAME] * layout.members, STACKED, axis=1)
    for call in unrolled.calls:
        read = replace(call, inputs=tuple(names[name] for name in call.inputs))
        names[call.output] = LOWERINGS[type(call.op)](writer, read)
    _heads(writer, layout, [names[name] for name in unrolled.logits])
    tokens = isinstance(spec.graph.input, Tokens)
    kind = TensorProto.INT64 if tokens else TensorProto.FLOAT
    output = spec.graph.output_shape if layout.along != "channels" else _own_output(layout)
    _mean(writer, aggregation, axes=1 + len(output))
    graph = helper.make_graph(
        writer.nodes,
        "ensemble",
        [helper.make_tensor_value_info(INPUT_NAME, kind, ["batch", *layout.input_shape])],
        [
            helper.make_tensor_value_info(HEADS, TensorProto.FLOAT, [layout.members, "batch", *output]),
            helper.make_tensor_value_info(MEAN, TensorProto.FLOAT, ["batch", *output]),
        ],
        writer.constants,
    )
    made = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="neurotrails",
        producer_version=nt_core.__version__,
    )
    helper.set_model_props(made, {"spec": json.dumps(spec.to_dict())})
    return made


def _own_output(layout: Layout) -> tuple[int, ...]:
    return (layout.graph.output_shape[0] // layout.members,)


def _heads(writer: Writer, layout: Layout, logits: list[str]) -> None:
    """Stack members' logits: (M, B, …)."""
    if layout.along == "channels":
        shape = writer.constant("heads: shape", [0, layout.members, *_own_output(layout)])
        split = writer.add("Reshape", [logits[0], shape], "heads: split")
        writer.add("Transpose", [split], HEADS, perm=[1, 0, 2])
        return
    axis = writer.constant("heads: axis", [0])
    own = [
        writer.add("Unsqueeze", [name, axis], f"heads: {number}")
        for number, name in enumerate(logits, start=1)
    ]
    writer.add("Concat", own, HEADS, axis=0)


def _mean(writer: Writer, how: Aggregation, *, axes: int) -> None:
    """Average members' predictions: probabilities (B, …, classes) with ``axes`` axes."""
    axis = writer.constant("mean: axis", [0])
    if how == "mean_logit":
        mean = writer.add("ReduceMean", [HEADS, axis], "mean: logits", keepdims=0)
        writer.add("Softmax", [mean], MEAN, axis=-1)
        return
    probabilities = writer.add("Softmax", [HEADS], "mean: probabilities", axis=-1)
    if not isinstance(how, Fitted):
        writer.add("ReduceMean", [probabilities, axis], MEAN, keepdims=0)
        return
    weights = writer.constant("mean: weights", np.array(how.weights).reshape(-1, *[1] * axes))
    weighted = writer.add("Mul", [probabilities, weights], "mean: weighted")
    pooled = writer.add("ReduceSum", [weighted, axis], "mean: pooled", keepdims=0)
    temperature = writer.constant("mean: temperature", np.array(how.temperature))
    logs = writer.add("Log", [pooled], "mean: log")
    writer.add("Softmax", [writer.add("Div", [logs, temperature], "mean: tempered")], MEAN, axis=-1)
