#!/usr/bin/env bash
# ONNX Runtime's MaxPool leaves NaN out of some windows and returns a finite maximum, where PyTorch and NumPy return NaN.
#
# Version: onnxruntime 1.31.1 (CPU). The ONNX operator's text says nothing of NaN.
# Seen: of the window [[0, 1], [2, 3]] with NaN in place of one number, the maximum is 3, nan, 3 and 2, so the result
# depends on where NaN lies. A network that is fed with a broken pixel gives finite, confident outputs.
# Who should know: whoever compares a network in ONNX Runtime with PyTorch on inputs that may hold NaN.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q onnxruntime==1.31.1 onnx==1.23.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper

node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2])
shape = [1, 1, "h", "w"]
graph = helper.make_graph(
    [node],
    "g",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
kept = {}
for place in ((0, 0), (0, 1), (1, 0), (1, 1)):
    x = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    x[0, 0, *place] = np.nan
    kept[place] = float(session.run(None, {"x": x})[0].ravel()[0])
print("onnxruntime", onnxruntime.__version__, "window [[0, 1], [2, 3]] with NaN at:", kept)
assert any(np.isfinite(value) for value in kept.values()), "NaN is kept now: this finding is out of date"
PYTHON
