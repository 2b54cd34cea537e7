"""Training, evaluation and checkpoints in PyTorch."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from small import Images, short
from training import *  # noqa: F403
from training import alike, train

import nt_models
import nt_torch
from nt_core import PRESETS, DataError, EnsembleSpec, GraphError, OneRun, SpecError
from nt_core.checkpoint import save_checkpoint
from nt_core.testing import Blobs
from nt_core.training import Training
from nt_torch.training.train import _stream


def test_a_loaded_network_of_convolutions_gives_the_same_bits(tmp_path):
    graph = nt_models.wide_resnet(depth=10, width=1, classes=3, size=8, channels=1)
    spec = PRESETS["neurotrails"](graph).replace(plan=OneRun(steps=3))
    trained = nt_torch.train(spec, Training(batch_size=30), Images(), device="cpu")
    save_checkpoint(tmp_path, nt_torch.checkpoint(trained.model))
    x = np.random.default_rng(0).standard_normal((20, 1, 8, 8)).astype(np.float32)
    wanted = nt_torch.predict(trained.model, x)
    np.testing.assert_array_equal(nt_torch.predict(nt_torch.load(tmp_path), x), wanted)


def test_training_leaves_the_callers_random_numbers_alone(backend):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    train(backend, short("neurotrails"))
    assert torch.equal(torch.rand(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()


def test_accumulation_must_divide_the_batch():
    with pytest.raises(SpecError, match="divisor of batch_size=64, found 3"):
        Training(batch_size=64, accumulation=3)


def test_blocks_that_pytorch_could_not_tell_apart_are_an_error():
    with pytest.raises(GraphError, match="block 'a_b', op 'fc': PyTorch names it 'a_b__fc', which is taken"):
        nt_torch.compile(alike())


@pytest.mark.parametrize("label", [-1, 10, -99, -101])
def test_a_label_outside_the_classes_is_an_error(label):
    with pytest.raises(DataError, match="expected classes from 0 to 9"):
        nt_torch.ensemble_loss(torch.zeros(3, 2, 10), torch.tensor([1, label]))


def test_doubles_are_predicted_as_floats():
    model = nt_torch.compile(short("neurotrails"))
    assert nt_torch.predict(model, np.zeros((2, 6))).shape == (3, 2, 3)


@pytest.mark.parametrize("device", ["gpu", "cuda:77", "xla", "meta"])
def test_a_device_that_is_not_there(device, tmp_path):
    spec = short("single").replace(plan=OneRun(epochs=1))
    with pytest.raises(DataError, match=f"device '{device}'.*use cpu"):
        nt_torch.train(spec, Training(), Blobs(), device=device)
    save_checkpoint(tmp_path, nt_torch.checkpoint(nt_torch.compile(spec)))
    with pytest.raises(DataError, match=f"device '{device}'.*use cpu"):
        nt_torch.load(tmp_path, device=device)


def test_a_tracker_writes(backend, tmp_path, monkeypatch):
    # TensorBoard would import TensorFlow, if it is there, to open files.
    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", ModuleType("notf"))
    train(backend, short("neurotrails"), trackers=["tensorboard"], folder=tmp_path)
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_evaluation_leaves_the_mode_and_weights_alone():
    model = nt_torch.compile(PRESETS["treenet"](nt_models.mlp(inputs=6, hidden=(8,), classes=3, norm=True)))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    metrics = nt_torch.evaluate(model, Blobs(50, shuffle=False), batch_size=7)
    assert metrics.count == 50
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_images_in_another_layout_are_an_error():
    graph = nt_models.wide_resnet(depth=10, width=1, classes=10, size=8, channels=3)
    model = nt_torch.compile(EnsembleSpec(graph=graph))
    with pytest.raises(DataError, match=r"expected shape \(batch, 3, 8, 8\), found \(2, 8, 8, 3\)"):
        model(torch.zeros(2, 8, 8, 3))


def test_targets_of_another_shape_are_an_error():
    with pytest.raises(DataError, match=r"expected shape \(4,\)"):
        nt_torch.ensemble_loss(torch.zeros(3, 4, 10), torch.zeros(5, dtype=torch.long))


def test_loss_is_the_mean_or_sum_over_members():
    logits, targets = torch.randn(3, 4, 10), torch.tensor([1, 2, 3, 4])
    each = torch.stack([torch.nn.functional.cross_entropy(head, targets) for head in logits])
    assert nt_torch.ensemble_loss(logits, targets) == pytest.approx(float(each.mean()), rel=1e-6)
    assert nt_torch.ensemble_loss(logits, targets, reduction="sum") == pytest.approx(
        float(each.sum()), rel=1e-6
    )


def test_masked_models_go_through_state_dict_deepcopy_and_torch_compile():
    import copy

    model = nt_torch.compile(short("neurotrails"), seed=1).eval()
    x = torch.from_numpy(Blobs(4).inputs)
    wanted = model(x)
    other = nt_torch.compile(short("neurotrails"), seed=2).eval()
    other.load_state_dict(model.state_dict())
    for same in (other, copy.deepcopy(model), torch.compile(model, backend="eager", fullgraph=True)):
        assert torch.equal(same(x), wanted)


def test_each_process_of_each_turn_draws_numbers_of_its_own():
    whole = PRESETS["dst_ensemble"](nt_models.mlp(inputs=6, hidden=(16,), classes=3))
    turns = whole.replace(plan=whole.plan.replace(at_once=1)).turns
    seeds = [_stream(seed, part, process) for seed in (0, 1, 2**80) for part in turns for process in range(4)]
    assert len(set(seeds)) == len(seeds) == 36
    for seed in seeds:
        torch.manual_seed(seed)
