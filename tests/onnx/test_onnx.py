"""ONNX files, run in ONNX Runtime and held to the NumPy reference."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest

import nt_models
import nt_onnx
from nt_core import CheckpointError, EnsembleSpec, MultiHead, Tokens
from nt_core.checkpoint import Checkpoint, save_checkpoint
from nt_core.graph.ops import OPS
from nt_core.metrics import Fitted, aggregate
from nt_core.reference import forward
from nt_core.testing import model_cases, op_cases, random_values
from nt_models.tiny import TINY
from nt_onnx.lowering import LOWERINGS

RELATIVE = 1e-5
MLP = nt_models.mlp(inputs=6, hidden=(8, 8), classes=4)
CASES = [*op_cases(), *model_cases({name: make() for name, make in TINY.items()})]


def inputs(spec, batch):
    rng = np.random.default_rng(batch)
    shape = (batch, *spec.layout.input_shape)
    if isinstance(spec.graph.input, Tokens):
        return rng.integers(spec.graph.input.vocabulary, size=shape)
    return rng.standard_normal(shape, dtype=np.float32)


def exported(spec, file, **options):
    values = {name: value.astype(np.float32) for name, value in random_values(spec.layout, 1).items()}
    nt_onnx.export((spec, values), file, **options)
    return values, onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


def truth_of(spec, values, x):
    x = x if x.dtype.kind == "i" else x.astype(np.float64)
    return forward(spec.layout, {name: value.astype(np.float64) for name, value in values.items()}, x)


def test_every_op_is_lowered():
    assert set(LOWERINGS) == set(OPS)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_computes_what_the_reference_computes_for_any_batch(case, tmp_path):
    values, session = exported(case.spec, tmp_path / "model.onnx")
    for batch in (1, 2, 5):
        x = inputs(case.spec, batch)
        heads, mean = session.run(["heads", "mean"], {"input": x})
        truth = truth_of(case.spec, values, x)
        np.testing.assert_allclose(heads, truth, rtol=0, atol=RELATIVE * np.abs(truth).max())
        flat = truth.reshape(len(truth), -1, truth.shape[-1])
        expected = np.exp(aggregate(flat)).reshape(mean.shape)
        np.testing.assert_allclose(mean, expected, rtol=0, atol=1e-4)


FITTED = Fitted(weights=(0.75, 0.25), temperature=2.0)


@pytest.mark.parametrize("how", ["mean_prob", "mean_logit", FITTED], ids=str)
@pytest.mark.parametrize("name", ["wide_resnet", "llama"])
def test_predictions_are_averaged_as_the_spec_or_the_run_says(name, how, tmp_path):
    spec = EnsembleSpec(graph=TINY[name](), structure=MultiHead(split=1, heads=2))
    _, session = exported(spec, tmp_path / "model.onnx", aggregation=how)
    heads, mean = session.run(["heads", "mean"], {"input": inputs(spec, 3)})
    expected = np.exp(aggregate(heads.reshape(2, -1, heads.shape[-1]), how)).reshape(mean.shape)
    np.testing.assert_allclose(mean, expected, rtol=0, atol=1e-6)


def test_the_file_names_its_values_and_holds_the_spec(tmp_path):
    spec = EnsembleSpec(graph=MLP, structure=MultiHead(split=1, heads=2))
    exported(spec, tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    assert [value.name for value in model.graph.input] == ["input"]
    assert [value.name for value in model.graph.output] == ["heads", "mean"]
    batch = [value.type.tensor_type.shape.dim for value in (*model.graph.input, *model.graph.output)]
    assert [dims[axis].dim_param for dims, axis in zip(batch, (0, 1, 0), strict=True)] == ["batch"] * 3
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    assert EnsembleSpec.from_dict(json.loads(metadata["spec"])) == spec


def test_a_folder_is_exported_with_what_was_fitted(tmp_path):
    spec = EnsembleSpec(graph=MLP, structure=MultiHead(split=1, heads=2))
    values = {name: value.astype(np.float32) for name, value in random_values(spec.layout, 1).items()}
    record = {"fitted": FITTED.model_dump(mode="json")}
    save_checkpoint(tmp_path / "run", Checkpoint(spec=spec, values=values, masks={}, record=record))
    nt_onnx.export(tmp_path / "run", tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    heads, mean = session.run(["heads", "mean"], {"input": inputs(spec, 3)})
    np.testing.assert_allclose(mean, np.exp(aggregate(heads, FITTED)), rtol=0, atol=1e-6)


def test_large_weights_lie_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("nt_onnx.model.LARGEST_BYTES", 1000)
    spec = EnsembleSpec(
        graph=nt_models.mlp(inputs=64, hidden=(64, 64), classes=4), structure=MultiHead(split=1, heads=2)
    )
    values, session = exported(spec, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx.data").stat().st_size > 0
    x = inputs(spec, 2)
    np.testing.assert_allclose(session.run(["heads"], {"input": x})[0], truth_of(spec, values, x), rtol=1e-3)


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    spec = EnsembleSpec(graph=MLP)
    with pytest.raises(CheckpointError, match="cannot be written"):
        exported(spec, tmp_path / "absent" / "model.onnx")
