"""Presets: names of papers' methods for a combination of the four choices, printed with all fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from nt_core.graph import BlockGraph
from nt_core.policies import (
    AtRandom,
    CannistraciHebb,
    Gradient,
    Magnitude,
    MagnitudeAndGradient,
    Momentum,
    SignedMagnitude,
    SignFlip,
    SoftMagnitude,
)
from nt_core.spec.ensemble import EnsembleSpec
from nt_core.structure import MIMO, BatchEnsemble, Fission, Independent, MultiHead, Single
from nt_core.topology import (
    ER,
    ERK,
    DropFraction,
    Dynamic,
    GradualPruning,
    Grasp,
    PruneAtInit,
    Semantics,
    Snip,
    Static,
    Uniform,
)
from nt_core.training import ExploreRefine, OneRun


def single(graph: BlockGraph) -> EnsembleSpec:
    """One dense network."""
    return EnsembleSpec(graph=graph, structure=Single())


def full_ensemble(graph: BlockGraph, *, members: int = 3) -> EnsembleSpec:
    """M dense networks trained independently (Lakshminarayanan et al. 2017)."""
    return EnsembleSpec(graph=graph, structure=Independent(count=members))


def treenet(graph: BlockGraph, *, split: int | None = None, heads: int = 3) -> EnsembleSpec:
    """A dense shared backbone and M dense heads, cross-entropy of each head (Lee et al. 2015)."""
    return EnsembleSpec(graph=graph, structure=_multi_head(graph, split, heads))


def static(graph: BlockGraph, *, sparsity: float = 0.8) -> EnsembleSpec:
    """One network with random ERK masks that never change."""
    return EnsembleSpec(graph=graph, topology=Static(sparsity=sparsity))


def set_(graph: BlockGraph, *, sparsity: float = 0.8) -> EnsembleSpec:
    """SET: prune 30 % by sign and magnitude, grow at random, Erdős–Rényi (Mocanu et al. 2018)."""
    topology = Dynamic(
        sparsity=sparsity,
        allocation=ER(),
        prune=SignedMagnitude(),
        grow=AtRandom(),
        drop_fraction=DropFraction(start=0.3, schedule="constant"),
    )
    return EnsembleSpec(graph=graph, topology=topology)


def rigl(graph: BlockGraph, *, sparsity: float = 0.8) -> EnsembleSpec:
    """RigL as widely run: magnitude prune, gradient growth after the optimiser's step (Evci et al. 2020)."""
    topology = Dynamic(sparsity=sparsity, drop_fraction=DropFraction(start=0.3, until=0.75))
    return EnsembleSpec(graph=graph, topology=topology)


def rigl_paper(graph: BlockGraph, *, sparsity: float = 0.8) -> EnsembleSpec:
    """RigL as in its original code: updates replace the optimiser's step, pruned connections may regrow."""
    topology = Dynamic(
        sparsity=sparsity,
        drop_fraction=DropFraction(start=0.3, until=0.75),
        semantics=Semantics(optimizer_step="replaced", regrow="return"),
    )
    return EnsembleSpec(graph=graph, topology=topology)


def neurotrails(
    graph: BlockGraph, *, split: int | None = None, heads: int = 3, sparsity: float = 0.8
) -> EnsembleSpec:
    """NeuroTrails for vision: ERK over everything, ΔT = 100, p = 0.5 cosine (arXiv 2505.17909, §3–4)."""
    topology = Dynamic(sparsity=sparsity, allocation=ERK(), prune=Magnitude(), grow=Gradient())
    return EnsembleSpec(graph=graph, structure=_multi_head(graph, split, heads), topology=topology)


def neurotrails_lm(
    graph: BlockGraph, *, split: int | None = None, heads: int = 3, sparsity: float = 0.1
) -> EnsembleSpec:
    """NeuroTrails for language: ER, attention projections dense, soft magnitude (arXiv 2505.17909, §4.3)."""
    topology = Dynamic(
        sparsity=sparsity,
        allocation=ER(dense=("@attention",)),
        prune=SoftMagnitude(temperature=3.0),
        grow=Gradient(),
        interval=50,
    )
    return EnsembleSpec(graph=graph, structure=_multi_head(graph, split, heads), topology=topology)


def neurotrails_code(
    graph: BlockGraph, *, split: int | None = None, heads: int = 3, sparsity: float = 0.8
) -> EnsembleSpec:
    """NeuroTrails for vision as in its code: the pruned may return, counts go up, the cosine ends at 0.005.

    Source: ``computer_vision/sparselearning/core.py`` of the code that arXiv 2505.17909 publishes, of 22 May
    2025. ΔT is that of the code's defaults; its script for CIFAR-100 passes 1000.
    """
    paper = neurotrails(graph, split=split, heads=heads, sparsity=sparsity)
    topology = Dynamic(
        sparsity=sparsity,
        drop_fraction=DropFraction(floor=0.005),
        semantics=Semantics(regrow="return", rounding="ceil"),
    )
    return paper.replace(topology=topology)


def neurotrails_lm_code(
    graph: BlockGraph, *, split: int | None = None, heads: int = 3, sparsity: float = 0.1
) -> EnsembleSpec:
    """NeuroTrails for language as in its code: losses summed, the pruned may return, cosine down to 0.005.

    Source: ``language_modeling/sparselearning/core.py`` and ``torchrun_main.py`` of the code that arXiv
    2505.17909 publishes, of 22 May 2025, with the options of its ``train_llm.sh``. It rounds up the number of
    connections that *stay*, so those that go are rounded down; and it lists no projection as dense, which at
    10 % sparsity ER itself makes of square ones.
    """
    paper = neurotrails_lm(graph, split=split, heads=heads, sparsity=sparsity)
    topology = Dynamic(
        sparsity=sparsity,
        allocation=ER(),
        prune=SoftMagnitude(temperature=3.0),
        drop_fraction=DropFraction(floor=0.005),
        interval=50,
        semantics=Semantics(regrow="return", rounding="floor"),
    )
    return paper.replace(topology=topology, loss="sum")


def batch_ensemble(graph: BlockGraph, *, members: int = 3) -> EnsembleSpec:
    """Members that share every kernel and scale its inputs and outputs (BatchEnsemble, Wen et al. 2020)."""
    return EnsembleSpec(graph=graph, structure=BatchEnsemble(count=members))


def mimo(graph: BlockGraph, *, members: int = 3) -> EnsembleSpec:
    """One network that reads M images at once, each four times in a batch (MIMO, Havasi et al. 2021, §4)."""
    return EnsembleSpec(graph=graph, structure=MIMO(count=members, repetitions=4))


def fission(graph: BlockGraph, *, members: int | None = None, sparsity: float = 0.5) -> EnsembleSpec:
    """One pruned network, its weights divided among M exits (Network Fission Ensembles, arXiv 2408.02301).

    M is by default 3, or the number of counted blocks if that is less.
    """
    return EnsembleSpec(
        graph=graph,
        structure=Fission(count=members or max(1, min(3, len(graph.counted)))),
        topology=PruneAtInit(sparsity=sparsity),
        aggregation="mean_logit",
    )


def gradual_pruning(graph: BlockGraph, *, sparsity: float = 0.8) -> EnsembleSpec:
    """One network pruned from dense while it trains, globally by magnitude (Zhu & Gupta 2017)."""
    return EnsembleSpec(graph=graph, topology=GradualPruning(sparsity=sparsity))


def snip(graph: BlockGraph, *, sparsity: float = 0.8) -> EnsembleSpec:
    """One network pruned before training by |w·∂L/∂w| on one batch, globally (Lee et al. 2019)."""
    return EnsembleSpec(graph=graph, topology=PruneAtInit(sparsity=sparsity, criterion=Snip()))


def grasp(graph: BlockGraph, *, sparsity: float = 0.8) -> EnsembleSpec:
    """One network pruned before training to keep its gradient flow, globally (Wang et al. 2020)."""
    return EnsembleSpec(graph=graph, topology=PruneAtInit(sparsity=sparsity, criterion=Grasp()))


def dst_ensemble(graph: BlockGraph, *, members: int = 3, sparsity: float = 0.8) -> EnsembleSpec:
    """M sparse networks, each trained by DST from its own start, one at a time (arXiv 2106.14568, §3.1)."""
    return EnsembleSpec(
        graph=graph,
        structure=Independent(count=members),
        topology=Dynamic(sparsity=sparsity, interval=1000),
        plan=OneRun(at_once=1),
    )


def edst(graph: BlockGraph, *, members: int = 3, sparsity: float = 0.8) -> EnsembleSpec:
    """One sparse network that explores, then becomes one member after another (arXiv 2106.14568, §3.2)."""
    return EnsembleSpec(
        graph=graph,
        topology=Dynamic(sparsity=sparsity, interval=1000),
        plan=ExploreRefine(members=members),
    )


def magnitude_pruning(graph: BlockGraph, *, sparsity: float = 0.8) -> EnsembleSpec:
    """Dense for half of the training, pruned at once, globally by magnitude; fixed masks from then on."""
    return EnsembleSpec(graph=graph, topology=GradualPruning(sparsity=sparsity, begin=0.5, end=0.5))


def snfs(graph: BlockGraph, *, sparsity: float = 0.8) -> EnsembleSpec:
    """SNFS: growth, also across weights, by the smoothed gradient (Dettmers & Zettlemoyer 2019)."""
    topology = Dynamic(sparsity=sparsity, allocation=Uniform(), grow=Momentum(), scope="momentum")
    return EnsembleSpec(graph=graph, topology=topology)


def mest(graph: BlockGraph, *, sparsity: float = 0.8) -> EnsembleSpec:
    """MEST with elastic mutation: prune by |w| + λ|∂L/∂w|, grow at random, ever less (Yuan et al. 2021)."""
    topology = Dynamic(
        sparsity=sparsity,
        allocation=Uniform(),
        prune=MagnitudeAndGradient(),
        grow=AtRandom(),
        drop_fraction=DropFraction(start=0.3, schedule="linear", until=0.75),
    )
    return EnsembleSpec(graph=graph, topology=topology)


def deep_r(graph: BlockGraph, *, sparsity: float = 0.8) -> EnsembleSpec:
    """Deep R: prune weights that change sign, grow as many at random, at every step (Bellec et al. 2018)."""
    topology = Dynamic(
        sparsity=sparsity,
        allocation=Uniform(),
        prune=SignFlip(),
        grow=AtRandom(),
        drop_fraction=DropFraction(start=1.0, schedule="constant"),
        interval=1,
    )
    return EnsembleSpec(graph=graph, topology=topology)


def cht(graph: BlockGraph, *, sparsity: float = 0.99) -> EnsembleSpec:
    """CHT: magnitude prune, growth by the mask's own paths of length 3, CH3-L3 (Zhang et al. 2024)."""
    topology = Dynamic(
        sparsity=sparsity,
        allocation=Uniform(),
        grow=CannistraciHebb(),
        drop_fraction=DropFraction(start=0.3, schedule="constant"),
    )
    return EnsembleSpec(graph=graph, topology=topology)


def chts(graph: BlockGraph, *, sparsity: float = 0.95) -> EnsembleSpec:
    """CHTs: as CHT, both choices by sampling, CH2-L3n (Zhang et al. 2025, arXiv 2501.19107)."""
    topology = Dynamic(
        sparsity=sparsity,
        allocation=Uniform(),
        prune=SoftMagnitude(),
        grow=CannistraciHebb(rule="ch2_l3n", soft=True),
        drop_fraction=DropFraction(start=0.3, schedule="constant"),
    )
    return EnsembleSpec(graph=graph, topology=topology)


def _multi_head(graph: BlockGraph, split: int | None, heads: int) -> MultiHead:
    """Put by default a third of the counted blocks into the backbone, as the paper does."""
    return MultiHead(split=round(len(graph.counted) / 3) if split is None else split, heads=heads)


PRESETS: Mapping[str, Callable[..., EnsembleSpec]] = MappingProxyType(
    {
        make.__name__.rstrip("_"): make
        for make in (
            single,
            full_ensemble,
            treenet,
            static,
            set_,
            rigl,
            rigl_paper,
            neurotrails,
            neurotrails_lm,
            neurotrails_code,
            neurotrails_lm_code,
            batch_ensemble,
            mimo,
            fission,
            gradual_pruning,
            snip,
            grasp,
            dst_ensemble,
            edst,
            magnitude_pruning,
            snfs,
            mest,
            deep_r,
            cht,
            chts,
        )
    }
)
"""Name → function that makes the spec for a graph."""
