"""ResNet against transformers' own: logits with the weights carried over, and the number of parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification

from nt_core import EnsembleSpec, MultiHead, Single
from nt_core.checkpoint import Checkpoint
from nt_core.cost import cost
from nt_core.reference import forward
from nt_core.structure import PlacedWeight
from nt_models import resnet
from nt_models.resnet import BASIC, BOTTLENECK
from nt_torch.checkpoint import restore


def config(depth: int, *, width: int = 64, classes: int = 1000, channels: int = 3) -> ResNetConfig:
    """Describe the network that ``nt_models.resnet`` makes: its stride is in the 3×3 convolution (v1.5)."""
    basic = depth in BASIC
    return ResNetConfig(
        num_channels=channels,
        embedding_size=width,
        hidden_sizes=[width * 2**stage * (1 if basic else 4) for stage in range(4)],
        depths=(BASIC | BOTTLENECK)[depth],
        layer_type="basic" if basic else "bottleneck",
        downsample_in_bottleneck=False,
        num_labels=classes,
    )


def pretrained(depth: int, **sizes: int) -> ResNetForImageClassification:
    """Make a network whose every parameter and statistic is random and tells."""
    torch.manual_seed(0)
    model = ResNetForImageClassification(config(depth, **sizes))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.5, 1.5)
                for tensor in (module.bias, module.running_mean):
                    tensor.normal_(std=0.3)
    return model.eval()


def their_name(placed: PlacedWeight, convolutions: int) -> str:
    """Name a weight as transformers does; a block's last norm is the shortcut's where there is one."""
    block, node, weight = placed.block.name, placed.node.name, placed.weight.name
    if block == "classifier":
        return f"classifier.1.{weight}"
    kind = "normalization" if node.startswith("norm") else "convolution"
    if block == "stem":
        return f"resnet.embedder.embedder.{kind}.{weight}"
    stage, number = (int(part) - 1 for part in block.removeprefix("stage").split("."))
    inside = node.removeprefix("conv").removeprefix("norm")
    shortcut = inside == "shortcut" or int(inside) > convolutions
    place = "shortcut" if shortcut else f"layer.{int(inside) - 1}"
    return f"resnet.encoder.stages.{stage}.layers.{number}.{place}.{kind}.{weight}"


def carried(model: ResNetForImageClassification, spec: EnsembleSpec) -> Checkpoint:
    """Carry a network's weights over into the backbone and every head of a spec."""
    theirs = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    names = {
        p.name: their_name(p, 2 if model.config.layer_type == "basic" else 3) for p in spec.layout.weights
    }
    assert {n for n in theirs if not n.endswith("num_batches_tracked")} == set(names.values())
    return Checkpoint(spec=spec, values={ours: theirs[name] for ours, name in names.items()}, masks={})


@pytest.mark.parametrize("structure", [Single(), MultiHead(split=2, heads=2)], ids=lambda s: s.kind)
@pytest.mark.parametrize("size", [32, 45])
@pytest.mark.parametrize("depth", [10, 18, 14, 50])
def test_logits_are_equal(depth: int, size: int, structure: Any) -> None:
    sizes = {"width": 8, "classes": 7, "channels": 2}
    model = pretrained(depth, **sizes)
    spec = EnsembleSpec(graph=resnet(depth=depth, size=size, **sizes), structure=structure)
    x = torch.randn(3, 2, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = np.broadcast_to(model(x).logits.numpy(), (spec.members, 3, 7))
    assert np.abs(expected - expected[:, :1]).max() > 0.01  # the inputs tell
    loaded = carried(model, spec)
    with torch.no_grad():
        np.testing.assert_allclose(restore(loaded)(x).numpy(), expected, rtol=1e-4, atol=1e-5)
    if depth in (10, 14):
        np.testing.assert_allclose(
            forward(spec.layout, loaded.values, x.numpy()), expected, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_the_number_of_parameters_is_theirs(depth: int) -> None:
    with torch.device("meta"):
        theirs = ResNetForImageClassification(config(depth)).num_parameters()
    assert cost(EnsembleSpec(graph=resnet(depth=depth))).parameters_total == theirs
