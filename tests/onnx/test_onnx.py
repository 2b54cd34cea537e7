"""ONNX files, run in ONNX Runtime and held to the NumPy reference."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest

import nt_models
import nt_onnx
from nt_core import MIMO, CheckpointError, EnsembleSpec, MultiHead, Tokens
from nt_core.checkpoint import Checkpoint, save_checkpoint
from nt_core.graph.ops import OPS
from nt_core.metrics import Fitted, aggregate
from nt_core.reference import forward
from nt_core.testing import model_cases, op_cases, random_values
from nt_core.training import Normalisation, Preprocessing
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


@pytest.mark.parametrize("structure", [MultiHead(split=1, heads=2), MIMO(count=2)])
def test_raw_images_are_normalised_in_the_graph(structure, tmp_path):
    graph = nt_models.wide_resnet(depth=10, width=1, classes=3, size=8, channels=3)
    spec = EnsembleSpec(graph=graph, structure=structure)
    pixels = Preprocessing.of_images((3, 8, 8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), scale=1 / 255)
    record = {"data": {"classes": ["a", "b", "[c]"], "preprocessing": pixels.model_dump(mode="json")}}
    values = {name: value.astype(np.float32) for name, value in random_values(spec.layout, 1).items()}
    saved = Checkpoint(spec=spec, values=values, masks={}, record=record)
    nt_onnx.export(saved, tmp_path / "plain.onnx")
    nt_onnx.export(saved, tmp_path / "raw.onnx", raw=True)
    plain, raw = (
        onnxruntime.InferenceSession(tmp_path / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for name in ("plain", "raw")
    )
    assert raw.get_inputs()[0].type == "tensor(uint8)"
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    (found,), (wanted,) = (
        session.run(["mean"], {"input": given})
        for session, given in ((raw, images), (plain, pixels.inputs(images, (3, 8, 8))))
    )
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    for session in (plain, raw):
        about = session.get_modelmeta().custom_metadata_map
        assert json.loads(about["classes"]) == ["a", "b", "[c]"]
        assert Preprocessing(**json.loads(about["preprocessing"])) == pixels


def test_raw_vectors_and_flattened_images_too(tmp_path):
    halves = {"mean": (1.0,) * 6, "std": (2.0,) * 6}
    vectors = Preprocessing(units="values", shape=(6,), normalisation=Normalisation(**halves))
    pixels = Preprocessing.of_images((1, 2, 3), mean=(100.0,), std=(50.0,))
    spec = EnsembleSpec(graph=MLP)
    values = {name: value.astype(np.float32) for name, value in random_values(spec.layout, 1).items()}
    for number, way in enumerate((vectors, pixels)):
        record = {"data": {"preprocessing": way.model_dump(mode="json")}}
        file = tmp_path / f"{number}.onnx"
        nt_onnx.export(Checkpoint(spec=spec, values=values, masks={}, record=record), file, raw=True)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        given = np.arange(12).reshape(2, *way.shape).astype(np.uint8 if way is pixels else np.float32)
        truth = truth_of(spec, values, way.inputs(given, (6,)))
        np.testing.assert_allclose(session.run(["heads"], {"input": given})[0], truth, atol=1e-4)
    with pytest.raises(CheckpointError, match="does not record how raw inputs are normalised"):
        nt_onnx.export((spec, values), tmp_path / "none.onnx", raw=True)
