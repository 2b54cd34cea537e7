"""Predictions of images without labels, with the names of classes, from whatever holds the images."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from datasets import Image as ImageFeature
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

import nt_cpu
from nt_core.checkpoint import load_checkpoint
from nt_lab.cli.main import app
from nt_lab.data.sources import open_source
from nt_lab.serving import pictures
from nt_lab.serving import serve as serving
from nt_lab.serving.tables import predictions_table

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "[eight]", "nine"]


def nt(*arguments, code=0, **how):
    found = CliRunner().invoke(app, [str(argument) for argument in arguments], **how)
    assert found.exit_code == code, found.output
    return found


def panel(found):
    return " ".join(found.stderr.replace("│", " ").split())


@pytest.fixture(scope="module")
def named(run, tmp_path_factory):
    """The run on digits packed, its classes named and its images resized."""
    saved = load_checkpoint(run)
    data = saved.record["data"]
    assert data["classes"] == [str(number) for number in range(10)]
    changed = {**data, "classes": NAMES, "preprocessing": {**data["preprocessing"], "resize": [8, 8]}}
    engine = nt_cpu.compile(replace(saved, record={**saved.record, "data": changed}), batch=16)
    file = tmp_path_factory.mktemp("named") / "model.nt"
    nt_cpu.pack(engine, file)
    return file


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    """Six test digits as pictures, in two folders; the last of another size and in colour."""
    folder = tmp_path_factory.mktemp("shots")
    (folder / "more").mkdir()
    column = open_source("digits")["test"].cast_column("image", ImageFeature())["image"]
    for place in range(6):
        picture = column[place]
        if place == 5:
            picture = picture.resize((24, 16)).convert("RGB")
        picture.save(folder / ("more" if place > 3 else ".") / f"{place}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def predicted(*arguments, **how):
    return json.loads(nt("predict", *arguments, "--json", **how).stdout)["predictions"]


def expect_same(found, wanted):
    """Expect the same files, names and probabilities; batches of another size round otherwise."""
    assert [row["file"] for row in found] == [row["file"] for row in wanted]
    for row, other in zip(found, wanted, strict=True):
        assert row["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
        assert row["prediction"] == max(row["probabilities"], key=row["probabilities"].get)


def test_a_folder_a_pattern_files_and_standard_input_give_the_same(named, shots):
    engine = nt_cpu.load(named)
    rows = predicted(named, shots)
    assert [row["file"] for row in rows] == [str(shots / f"{n}.png") for n in range(4)] + [
        str(shots / "more" / f"{n}.png") for n in (4, 5)
    ]
    raw = [np.asarray(Image.open(row["file"]).convert("L")) for row in rows]
    truth = engine(raw)  # what a camera gives: bytes of any size
    for row, probabilities in zip(rows, truth, strict=True):
        assert row["prediction"] == NAMES[probabilities.argmax()]
        assert list(row["probabilities"]) == NAMES
        np.testing.assert_allclose(list(row["probabilities"].values()), probabilities, atol=0.02)
    expect_same(predicted(named, shots / "*.png"), rows[:4])
    expect_same(predicted(named, "--data", shots), rows)
    expect_same(predicted(named, shots / "more" / "5.png", shots / "0.png"), [rows[5], rows[0]])
    expect_same(predicted(named, "-", input=(shots / "0.png").read_bytes()), [{**rows[0], "file": "-"}])


def test_raw_images_are_predicted_as_the_normalised_test_split(run, named):
    engine = nt_cpu.load(named)
    assert engine.classes == tuple(NAMES)
    column = open_source("digits")["test"].cast_column("image", ImageFeature())["image"]
    raw = np.stack([np.asarray(column[place]) for place in range(20)])
    rows = predicted(run, "--limit", 360)[:20]
    truth = [list(row["probabilities"].values()) for row in rows]
    np.testing.assert_allclose(engine(raw), truth, atol=1e-5)
    np.testing.assert_array_equal(engine(raw[:, None]), engine(raw))
    np.testing.assert_array_equal(engine(raw[..., None].astype(np.int64)), engine(raw))
    np.testing.assert_allclose(engine(raw[3]), engine(raw)[3:4], atol=1e-6)
    np.testing.assert_array_equal(engine(engine.prepare(raw)), engine(raw))
    with pytest.warns(UserWarning, match="floats are taken as normalised already, but found 0 to 240"):
        engine(raw[:, None].astype(np.float32))


def test_tables_and_csv_show_names_as_they_are(run, named, shots, tmp_path):
    table = nt("predict", named, shots, "--out", tmp_path / "p[1].csv", env={"COLUMNS": "200"}).stdout
    assert f"predictions: {tmp_path / 'p[1].csv'}" in table
    with (tmp_path / "p[1].csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [row["file"] for row in predicted(named, shots)]
    assert "p_[eight]" in rows[0]
    assert {row["prediction"] for row in rows} <= set(NAMES)
    labelled = serving.predict(nt_cpu.load(named), serving.data_of(nt_cpu.compile(run), run, None))
    labelled.write_csv(tmp_path / "l.csv")
    with (tmp_path / "l.csv").open() as file:
        assert {row["label"] for row in csv.DictReader(file)} == set(NAMES)
    said = panel(nt("predict", named, "--data", "digits", code=2))
    assert "the model does not know the classes '0', '1'" in said
    found = serving.predict_images(nt_cpu.load(named), [str(shots)])
    console = Console(file=io.StringIO(), width=200)
    console.print(predictions_table(replace(found, classes=["[bold]"] * 10)))
    assert "[bold]" in console.file.getvalue()


def test_what_cannot_be_predicted_is_refused_by_name(run, named, shots, tmp_path):
    assert "found no image" in panel(nt("predict", named, tmp_path / "absent.png", code=2))
    assert "found no image" in panel(nt("predict", named, tmp_path, code=2))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert "cannot be decoded" in panel(nt("predict", named, tmp_path, code=2))
    assert "cannot be decoded" in panel(nt("predict", named, "-", code=2, input=b""))
    assert "found both" in panel(nt("predict", named, shots, "--data", "digits", code=2))
    said = panel(nt("predict", run, shots / "more" / "5.png", code=2))
    assert "the network reads 8×8 pixels (height × width), found 16×24" in said
    assert "data.resize=[8,8]" in said
    assert pictures.is_unlabelled("-")
    assert not pictures.is_unlabelled("digits")


def test_an_onnx_file_takes_raw_images(named, run, tmp_path):
    found = json.loads(nt("export", run, tmp_path / "raw.onnx", "--to", "onnx", "--raw", "--json").stdout)
    assert found["differs"] < 1e-5
    assert "leave it out" in panel(nt("export", run, tmp_path / "raw.nt", "--raw", code=2))
