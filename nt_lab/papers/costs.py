"""Cost of the papers' methods from their graphs alone: the figures of ``nt cost``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import nt_models
from nt_core import MIMO, BatchEnsemble, BlockGraph, Dynamic, EnsembleSpec, Independent, Static
from nt_core.cost import cost
from nt_core.spec import fission, full_ensemble, neurotrails, neurotrails_lm, single, treenet

FREETICKETS: Final = "arXiv 2106.14568"
NEUROTRAILS: Final = "arXiv 2505.17909"


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method as a paper runs it.

    Attributes:
        name: of the method, with its number of members and its sparsity.
        spec: of the ensemble that predicts.
        length: of the training, in the setting's unit.
        trained: spec of the part that each training step computes, where that is not the whole of ``spec``.
        published: a figure that a paper prints, with its meaning where that differs from ours.
    """

    name: str
    spec: EnsembleSpec
    length: float
    trained: EnsembleSpec | None = None
    published: str = ""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A network and a dataset on which methods are compared; figures are relative to the first method.

    Attributes:
        title: names network and dataset.
        unit: of the lengths, ``"epochs"`` or ``"updates"``.
        examples: number in one unit; an example of a language model is one sequence.
        methods: the compared methods.
    """

    title: str
    unit: str
    examples: int
    methods: tuple[Method, ...]


@dataclass(frozen=True, kw_only=True)
class Line:
    """Cost of one method; relative figures are relative to the single dense network as the paper trains it.

    Attributes:
        setting: title of the setting.
        method: name of the method.
        length: ``"450 epochs"``.
        parameters: every trainable element, embeddings, biases and norms too.
        weights: number of convolution and linear weights.
        active: number of active weights among them.
        flops_training: of the whole training.
        flops_inference: for one example (one sequence of a language model).
        relative: of weights, active weights, FLOPs, and FLOPs as if every layer had the same density.
        published: as in :class:`Method`.
    """

    setting: str
    method: str
    length: str
    parameters: int
    weights: int
    active: int
    flops_training: float
    flops_inference: int
    relative: dict[str, float]
    published: str


def settings() -> tuple[Setting, ...]:
    """Return the comparisons of the papers.

    Example:
        >>> [setting.title for setting in settings()][0]
        'WRN-28-10, CIFAR-100'
    """
    wrn, tiny = (
        nt_models.wide_resnet(depth=28, width=10, classes=classes, size=size)
        for classes, size in ((100, 32), (200, 64))
    )
    return (
        Setting(title="WRN-28-10, CIFAR-100", unit="epochs", examples=50_000, methods=_cifar(wrn)),
        Setting(
            title="WRN-28-10, Tiny-ImageNet",
            unit="epochs",
            examples=100_000,
            methods=_vision(tiny, split=4, sparsity=0.8, dense=100, sparse=200),
        ),
        Setting(
            title="ResNet-50, ImageNet",
            unit="epochs",
            examples=1_281_167,
            methods=_vision(nt_models.resnet(depth=50), split=6, sparsity=0.7, dense=90, sparse=270),
        ),
        *(
            Setting(
                title=f"LLaMA-{size}, C4, 1024 tokens",
                unit="updates",
                examples=512,
                methods=_language(graph, updates),
            )
            for size, graph, updates in (
                ("130M", nt_models.llama_130m(), 10_000),
                ("350M", nt_models.llama_350m(), 40_000),
            )
        ),
    )


def lines(chosen: Sequence[Setting] | None = None) -> list[Line]:
    """Compute the cost of every method; no array of a weight's size is made.

    Example:
        >>> line = next(line for line in lines() if line.method == "NeuroTrails, M = 3, S = 0.8")
        >>> {name: round(ratio, 4) for name, ratio in line.relative.items()}["flops_inference"]
        0.6831
    """
    return [line for setting in chosen or settings() for line in _lines(setting)]


def _cifar(graph: BlockGraph) -> tuple[Method, ...]:
    """List the methods that FreeTickets, §4, and NeuroTrails, §4.1, compare."""
    sparse = {sparsity: EnsembleSpec(graph=graph, topology=_dst(sparsity)) for sparsity in (0.8, 0.9)}

    def members(count: int, sparsity: float) -> EnsembleSpec:
        return sparse[sparsity].replace(structure=Independent(count=count))

    return (
        *_vision(graph, split=4, sparsity=0.8, dense=250, sparse=450)[:-1],
        Method(
            name="static, S = 0.8", spec=EnsembleSpec(graph=graph, topology=Static(sparsity=0.8)), length=250
        ),
        Method(name="RigL, S = 0.8", spec=sparse[0.8], length=250),
        Method(
            name="DST ensemble, M = 3, S = 0.8",
            spec=members(3, 0.8),
            length=250,
            published=f"1.01× ({FREETICKETS}), training and inference",
        ),
        *(
            Method(
                name=f"EDST ensemble, M = {count}, S = {sparsity:g}",
                spec=members(count, sparsity),
                trained=sparse[sparsity],
                length=150 + 100 * count,
                published=f"{printed} ({FREETICKETS})",
            )
            for count, sparsity, printed in (
                (3, 0.8, "0.61× training, 1.01× inference"),
                (7, 0.9, "0.57× training, 1.17× inference"),
            )
        ),
        *(
            Method(
                name=f"NeuroTrails, M = {heads}, S = {sparsity:g}",
                spec=neurotrails(graph, split=4, heads=heads, sparsity=sparsity),
                length=450,
                published=f"{printed}× ({NEUROTRAILS}) is inference at uniform density; trained with ERK",
            )
            for heads, sparsity, printed in ((3, 0.8, 0.47), (5, 0.9, 0.37))
        ),
    )


def _vision(
    graph: BlockGraph, *, split: int, sparsity: float, dense: float, sparse: float
) -> tuple[Method, ...]:
    """List the methods that NeuroTrails, §4, compares; MIMO as its own paper trains it (CIFAR, ImageNet)."""
    mimo = MIMO(count=2, rho=0.6, repetitions=2) if dense == 90 else MIMO(count=3, repetitions=4)
    return (
        Method(name="single dense", spec=single(graph), length=dense),
        Method(name="full ensemble, M = 3", spec=full_ensemble(graph), length=dense),
        Method(
            name="TreeNet, M = 3",
            spec=treenet(graph, split=split),
            length=dense,
            published=f"2.91× FLOPs ({NEUROTRAILS}) is the ratio of weights" if dense == 250 else "",
        ),
        Method(
            name="BatchEnsemble, M = 3",
            spec=EnsembleSpec(graph=graph, structure=BatchEnsemble(count=3)),
            length=dense,
        ),
        Method(
            name=f"MIMO, M = {mimo.count}",
            spec=EnsembleSpec(graph=graph, structure=mimo),
            length=dense,
        ),
        Method(
            name="NFE, M = 3, S = 0.5",
            spec=fission(graph, members=3),
            length=dense,
        ),
        Method(
            name=f"NeuroTrails, M = 3, S = {sparsity:g}",
            spec=neurotrails(graph, split=split, sparsity=sparsity),
            length=sparse,
        ),
    )


def _language(graph: BlockGraph, updates: int) -> tuple[Method, ...]:
    """List the methods that NeuroTrails, §4.3, compares; sparse training is extended by 1 / (1 − S)."""
    return (
        Method(name="single dense", spec=single(graph), length=updates),
        Method(name="full ensemble, M = 3", spec=full_ensemble(graph), length=updates),
        Method(name="TreeNet, M = 3", spec=treenet(graph), length=updates),
        Method(name="NeuroTrails, M = 3, S = 0.1", spec=neurotrails_lm(graph), length=round(updates / 0.9)),
    )


def _dst(sparsity: float) -> Dynamic:
    """Return dynamic sparse training as FreeTickets runs it: ERK, gradient growth, ΔT = 1000."""
    return Dynamic(sparsity=sparsity, interval=1000)


def _lines(setting: Setting) -> Iterator[Line]:
    first: Line | None = None
    for method in setting.methods:
        here, step = cost(method.spec), cost(method.trained or method.spec)
        total = step.flops_training_step * setting.examples * method.length
        relative = here.relative_to_single_dense()
        relative["flops_training"] = total / first.flops_training if first else 1.0
        line = Line(
            setting=setting.title,
            method=method.name,
            length=f"{method.length:,} {setting.unit}",
            parameters=here.parameters_total,
            weights=here.weights_total,
            active=here.weights_active,
            flops_training=total,
            flops_inference=here.flops_inference,
            relative={name: relative[name] for name in RELATIVE},
            published=method.published,
        )
        first = first or line
        yield line


RELATIVE: Final = (
    "weights_total",
    "weights_active",
    "flops_training",
    "flops_inference",
    "flops_uniform_equivalent",
)
"""The ratios of a line, in the order in which tables show them."""
