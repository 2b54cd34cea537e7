"""Architectures have their published sizes and costs; large ones are described at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import nt_models
from nt_core import PRESETS, EnsembleSpec, MultiHead, read_spec
from nt_core.cost import Cost, cost
from nt_core.errors import GraphError, SpecError
from nt_core.graph import BlockGraph, ops
from nt_core.testing.models import MODELS
from nt_models.tiny import TINY
from tests.core.work import calls_in, peak_bytes_in


def figures(graph: BlockGraph) -> Cost:
    return cost(EnsembleSpec(graph=graph))


LARGE = {
    "wide_resnet": (nt_models.wide_resnet, 12, 36_536_884),
    "resnet18": (lambda: nt_models.resnet(depth=18), 8, 11_689_512),
    "resnet34": (lambda: nt_models.resnet(depth=34), 16, 21_797_672),
    "resnet50": (nt_models.resnet, 16, 25_557_032),
    "resnet101": (lambda: nt_models.resnet(depth=101), 33, 44_549_160),
    "resnet152": (lambda: nt_models.resnet(depth=152), 50, 60_192_808),
    "vit_s16": (nt_models.vit_s16, 12, 22_050_664),
    "mixer_s16": (nt_models.mixer_s16, 8, 18_528_264),
    "llama_130m": (nt_models.llama_130m, 12, 134_105_856),
    "llama_250m": (nt_models.llama_250m, 24, 247_370_496),
    "llama_350m": (nt_models.llama_350m, 24, 367_969_280),
    "llama_1b": (nt_models.llama_1b, 22, 1_100_048_384),
    "llama_7b": (nt_models.llama_7b, 32, 6_738_415_616),
    "llama_13b": (nt_models.llama_13b, 40, 13_015_864_320),
    "llama_34b": (nt_models.llama_34b, 48, 33_743_970_304),
    "llama_70b": (nt_models.llama_70b, 80, 68_976_648_192),
}
"""Name → what makes it, its counted blocks, its trainable parameters."""


@pytest.mark.parametrize("name", LARGE)
def test_parameters_and_counted_blocks(name: str) -> None:
    make, blocks, parameters = LARGE[name]
    found = figures(make())
    assert (found.blocks_counted, found.parameters_total) == (blocks, parameters)


# FLOPs by hand: twice the multiply-adds.


def resnet_multiply_adds(blocks: tuple[int, ...], bottleneck: bool) -> int:
    """Multiply-adds of a residual network for an image of 224 × 224 pixels and 1000 classes."""
    total, channels = 112**2 * 64 * 3 * 7**2, 64
    for stage, count in enumerate(blocks):
        width, pixels = 64 * 2**stage, (56 // 2**stage) ** 2
        out = 4 * width if bottleneck else width
        for i in range(count):
            down = bool(stage) and i == 0
            if bottleneck:
                total += channels * width * pixels * (4 if down else 1)
                total += width**2 * 9 * pixels + width * out * pixels
            else:
                total += (channels + width) * width * 9 * pixels
            total += channels * out * pixels if channels != out else 0
            channels = out
    return total + channels * 1000


@pytest.mark.parametrize(
    ("depth", "blocks", "published"),
    [
        (18, (2, 2, 2, 2), 1.81e9),
        (34, (3, 4, 6, 3), 3.66e9),
        (50, (3, 4, 6, 3), 4.09e9),
        (101, (3, 4, 23, 3), 7.80e9),
    ],
)
def test_flops_of_residual_networks(depth: int, blocks: tuple[int, ...], published: float) -> None:
    by_hand = resnet_multiply_adds(blocks, bottleneck=depth >= 50)
    assert by_hand == pytest.approx(published, rel=3e-3)
    assert figures(nt_models.resnet(depth=depth)).flops_inference == 2 * by_hand


def test_flops_of_the_vision_transformer() -> None:
    patches, width, hidden = 14 * 14, 384, 1536
    found = figures(nt_models.vit_s16())
    maps = patches * 16 * 16 * 3 * width + 12 * (patches + 1) * (4 * width**2 + 2 * width * hidden)
    assert found.flops_inference == 2 * (maps + width * 1000)
    assert found.flops_products == 2 * 12 * 2 * (patches + 1) ** 2 * width
    assert (found.flops_inference + found.flops_products) / 2 == pytest.approx(4.6e9, rel=5e-3)


def test_flops_of_the_mixer() -> None:
    patches, width = 14 * 14, 512
    block = 2 * width * patches * 256 + 2 * patches * width * 2048
    by_hand = patches * 16 * 16 * 3 * width + 8 * block + width * 1000
    assert figures(nt_models.mixer_s16()).flops_inference == 2 * by_hand


def test_flops_of_llama() -> None:
    width, hidden, length, vocabulary = 768, 2048, 1024, 32_000
    found = figures(nt_models.llama_130m())
    assert found.flops_inference == 2 * length * (
        12 * (4 * width**2 + 3 * width * hidden) + width * vocabulary
    )
    assert found.flops_products == 2 * 12 * 2 * length**2 * width


# Shapes.


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize(("size", "left"), [(32, 1), (33, 2), (64, 2), (225, 8)])
def test_residual_networks_take_images_of_any_size(depth: int, size: int, left: int) -> None:
    graph = nt_models.resnet(depth=depth, size=size, classes=7, channels=1)
    channels = 512 if depth == 18 else 2048
    assert graph.shapes[graph.blocks[-2].output] == (channels, left, left)
    assert graph.output_shape == (7,)


def test_bottlenecks_have_their_stride_in_the_3x3_convolution() -> None:
    strided = {
        node.op.kernel
        for block, node in nt_models.resnet(depth=50).nodes()
        if isinstance(node.op, ops.Conv2d) and node.op.stride == (2, 2) and node.name != "shortcut"
    }
    assert strided == {(7, 7), (3, 3)}


def test_small_models_are_small() -> None:
    assert figures(nt_models.vit_tiny32()).parameters_total == 2_693_578
    assert figures(nt_models.llama_tiny()).parameters_total == 217_664


def test_every_architecture_has_a_tiny_graph() -> None:
    found = {make().origin["name"] for make in TINY.values()}
    presets = {name for name in nt_models.ARCHITECTURES if name.rpartition("_")[0] in found}
    assert found | presets | {"mlp"} == set(nt_models.ARCHITECTURES)
    assert not set(TINY) & set(MODELS)


# What a user can get wrong.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nt_models.resnet(depth=49), "expected a depth of 10, 14, 18, 34, 50, 101, 152, found 49"),
        (
            lambda: nt_models.resnet(width=0),
            "conv2d.out_channels: input should be greater than or equal to 1",
        ),
        (
            lambda: nt_models.vit_s16(size=100),
            "expected patches of 16 × 16 pixels that tile the image, found",
        ),
        (
            lambda: nt_models.mixer(blocks=1, width=8, tokens=4, hidden=8, patch=0),
            "expected patches of 0 × 0",
        ),
        (
            lambda: nt_models.vit(blocks=1, width=10, hidden=8, heads=3),
            "'attention1' (attention): expected heads=3 to divide the 10 query features",
        ),
        (
            lambda: nt_models.llama(blocks=1, width=12, hidden=8, heads=5),
            "expected heads that divide width=12, found heads=5",
        ),
        (lambda: nt_models.llama(blocks=1, width=12, hidden=8, heads=4), "heads of an even size"),
        (
            lambda: nt_models.llama(blocks=1, width=12, hidden=8, heads=0),
            "expected heads that divide width=12, found heads=0",
        ),
        (lambda: nt_models.llama(blocks=1, width=8, hidden=8, heads=4, kv_heads=3), "kv_heads=3"),
    ],
)
def test_a_graph_that_cannot_be_is_refused(make: Callable[[], BlockGraph], message: str) -> None:
    with pytest.raises(GraphError) as caught:
        make()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"detph": 50}, "graph.detph: unknown argument of resnet; did you mean 'depth'?"),
        ({"depth": "deep"}, "graph.depth: input should be a valid integer"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        nt_models.ARCHITECTURES["resnet"](**arguments)
    assert message in str(caught.value)


def test_a_spec_file_names_them(tmp_path: Path) -> None:
    path = tmp_path / "resnet50.yaml"
    path.write_text("preset: neurotrails\ngraph: {name: resnet, depth: 50}\n")
    spec = read_spec(path, nt_models.ARCHITECTURES).ensemble(nt_models.ARCHITECTURES)
    assert spec.graph == nt_models.resnet()
    assert spec.structure == MultiHead(split=5, heads=3)


# Large models are described at once, and without an array of their size.


def described(name: str) -> Cost:
    return cost(PRESETS["neurotrails"](LARGE[name][0]()))


@pytest.mark.parametrize("name", LARGE)
def test_describing_a_large_model_takes_some_hundred_calls_for_each_weight(name: str) -> None:
    described(name)
    found, calls = calls_in(lambda: described(name))
    assert found.weights_active == round(0.2 * found.weights_total)
    assert calls < 500 * len(found.layers)


@pytest.mark.parametrize("name", LARGE)
def test_describing_a_large_model_makes_no_array_of_its_size(name: str) -> None:
    described(name)  # what is made once for all specs is not theirs
    found, peak = peak_bytes_in(lambda: described(name))
    assert found.weights_total > 2 * 10**7
    assert peak < 10 * 2**20
