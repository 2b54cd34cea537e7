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
from nt_core.checkpoint import (
    STACKED,
    Checkpoint,
    Values,
    aggregation_of,
    classes_of,
    load_checkpoint,
    preprocessing_of,
    unroll,
)
from nt_core.files import write_atomically
from nt_core.graph import INPUT
from nt_core.metrics import Aggregation, Fitted
from nt_core.structure import Layout
from nt_core.training import Preprocessing
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
    raw: bool = False,
) -> None:
    """Write a trained ensemble as ONNX: dynamic batch, input ``input``, outputs ``heads`` and ``mean``.

    ``heads`` (M, B, …, classes) are every member's logits, ``mean`` (B, …, classes) the ensemble's
    probabilities. Inputs are float32, tokens int64. Weights are stored dense, with exact zeros: ONNX runtimes
    multiply them. The metadata hold the spec, and as JSON, where the checkpoint records them, the names of
    the classes (``classes``) and the preprocessing of inputs (``preprocessing``).

    Args:
        trained: a checkpoint directory, or the checkpoint loaded from one; or a spec and every weight by its
            full name.
        file: the file to write; weights of more than 2 GB are in ``FILE.data`` beside it.
        aggregation: of members' predictions; None: the fitted aggregation in the checkpoint's record, else
            the mean that the spec names.
        raw: whether the file takes raw inputs and normalises them itself: images as uint8 (B, C, H, W), of
            the network's size, or vectors in the units of the training data.

    Raises:
        CheckpointError: as :func:`nt_core.load_checkpoint`; or the file cannot be written, or is to take raw
            inputs although the checkpoint does not record how they are normalised.
    """
    if isinstance(trained, tuple):
        saved = Checkpoint(spec=trained[0], values=trained[1], masks={})
    else:
        saved = trained if isinstance(trained, Checkpoint) else load_checkpoint(trained)
    preprocessing = preprocessing_of(saved.spec, saved.record)
    if raw and preprocessing is None:
        raise CheckpointError(
            f"{file}: the checkpoint does not record how raw inputs are normalised; leave raw out"
        )
    how = aggregation or aggregation_of(saved.spec, saved.record)
    made = model(saved.spec, saved.values, how, preprocessing if raw else None)
    if (classes := classes_of(saved.record)) is not None:
        made.metadata_props.add(key="classes", value=json.dumps(classes))
    if preprocessing is not None:
        made.metadata_props.add(key="preprocessing", value=preprocessing.model_dump_json())
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


def model(
    spec: EnsembleSpec, values: Values, aggregation: Aggregation, preprocessing: Preprocessing | None = None
) -> ModelProto:
    """Return the ONNX model of an ensemble.

    Args:
        spec: of the ensemble.
        values: full name → array.
        aggregation: of members' predictions.
        preprocessing: of raw inputs, a part of the graph; None: inputs are normalised already.
    """
    layout, writer = spec.layout, Writer()
    unrolled = unroll(layout, values)
    given = INPUT_NAME if preprocessing is None else _normalised(writer, preprocessing, layout)
    names = {INPUT: given, STACKED: STACKED}
    if layout.along == "channels":
        writer.add("Concat", [given] * layout.members, STACKED, axis=1)
    for call in unrolled.calls:
        read = replace(call, inputs=tuple(names[name] for name in call.inputs))
        names[call.output] = LOWERINGS[type(call.op)](writer, read)
    _heads(writer, layout, [names[name] for name in unrolled.logits])
    kind = TensorProto.INT64 if isinstance(spec.graph.input, Tokens) else TensorProto.FLOAT
    shape = layout.input_shape
    if preprocessing is not None:
        shape = preprocessing.shape
        kind = TensorProto.UINT8 if preprocessing.units == "bytes" else TensorProto.FLOAT
    output = spec.graph.output_shape if layout.along != "channels" else _own_output(layout)
    _mean(writer, aggregation, axes=1 + len(output))
    graph = helper.make_graph(
        writer.nodes,
        "ensemble",
        [helper.make_tensor_value_info(INPUT_NAME, kind, ["batch", *shape])],
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


def _normalised(writer: Writer, preprocessing: Preprocessing, layout: Layout) -> str:
    """Normalise raw inputs as in training, in float32: (B, *raw shape) → (B, *input shape)."""
    alike = (-1, *(1,) * (len(preprocessing.shape) - 1))
    mean = np.array(preprocessing.normalisation.mean, np.float32).reshape(alike)
    scale = (1 / np.array(preprocessing.normalisation.std)).astype(np.float32).reshape(alike)
    raw = INPUT_NAME
    if preprocessing.units == "bytes":
        raw = writer.add("Cast", [raw], "raw: floats", to=TensorProto.FLOAT)
    centred = writer.add("Sub", [raw, writer.constant("raw: mean", mean)], "raw: centred")
    scaled = writer.add("Mul", [centred, writer.constant("raw: scale", scale)], "raw: normalised")
    if preprocessing.shape == layout.input_shape:
        return scaled
    shape = writer.constant("raw: shape", [0, *layout.input_shape])
    return writer.add("Reshape", [scaled, shape], "raw: shaped")


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
