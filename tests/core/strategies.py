"""Strategies that the core's own tests share: what policies and updates read, and everything declared."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from nt_core import policies
from nt_core.policies import (
    CannistraciHebb,
    Criterion,
    Layer,
    MagnitudeAndGradient,
    Momentum,
    SoftMagnitude,
)
from nt_core.spec import PRESETS, FittedAverage, RunSpec
from nt_core.spec.ensemble import OneRun
from nt_core.structure import Independent, MultiHead, Single
from nt_core.testing.models import perceptron
from nt_core.topology import (
    ER,
    ERK,
    AnyTopology,
    Dense,
    DropFraction,
    Dynamic,
    ERKPlus,
    Explicit,
    GradualPruning,
    RandomGlobal,
    Semantics,
    Static,
    Uniform,
    UniformPlus,
)
from nt_core.topology.allocation import GROUPS, Allocation
from nt_core.topology.schedules import SCHEDULES
from nt_core.training import SGD, Adam, AdamW, Data, LearningRate, Training

PRUNES: tuple[Criterion, ...] = (
    *[criterion(kind=kind) for kind, criterion in policies.PRUNES.items()],
    SoftMagnitude(temperature=0.5),
    MagnitudeAndGradient(gradient_factor=2.0),
)
GROWS: tuple[Criterion, ...] = (
    *[criterion(kind=kind) for kind, criterion in policies.GROWS.items()],
    CannistraciHebb(rule="ch2_l3n", soft=True),
)
"""Every criterion that a spec file can name, with its defaults; some with other settings, too."""

FEW = st.sampled_from([-2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.0])


@cache  # making strategies and checking them would take longer than drawing from them
def values(size: int, dtype: Any) -> st.SearchStrategy[NDArray[Any]]:
    """Draw finite numbers: ties everywhere, all alike, or anything, the smallest and largest included."""
    wide = st.floats(allow_nan=False, allow_infinity=False, width=np.dtype(dtype).itemsize * 8)  # type: ignore[arg-type]
    return st.one_of(
        hnp.arrays(dtype, size, elements=FEW),
        hnp.arrays(dtype, size, elements=st.just(1.0)),
        hnp.arrays(dtype, size, elements=st.one_of(FEW, wide.map(lambda x: x / 4))),
    )


@cache
def flags(size: int) -> st.SearchStrategy[NDArray[np.bool_]]:
    """Draw which elements are active: any, none, or all."""
    alike = st.sampled_from([np.zeros(size, np.bool_), np.ones(size, np.bool_)])
    return st.one_of(hnp.arrays(np.bool_, size), alike.map(np.copy))


@cache
def divisors(size: int) -> st.SearchStrategy[int]:
    return st.sampled_from([number for number in range(1, size + 1) if size % number == 0])


KINDS = st.sampled_from([np.float32, np.float64])


@st.composite
def layers(draw: st.DrawFn, name: str = "head1/a/fc.weight", most: int = 40, dtype: Any = None) -> Layer:
    """Draw one weight as a policy sees it: any density, inactive weights exactly 0."""
    size = draw(st.integers(1, most))
    kind = draw(KINDS) if dtype is None else dtype
    active = draw(flags(size))
    weights = np.where(active, draw(values(size, kind)), 0).astype(kind)
    rows = draw(divisors(size))
    gradients, momentum = draw(values(size, kind)), draw(values(size, kind))
    return Layer(
        name=name,
        weights=weights,
        gradients=gradients,
        active=active,
        momentum=momentum,
        shape=(rows, size // rows),
    )


@st.composite
def layer_lists(draw: st.DrawFn, most: int = 20, fewest: int = 1) -> list[Layer]:
    """Draw the weights of a whole network, all of one dtype."""
    dtype = draw(KINDS)
    count = draw(st.integers(fewest, 4))
    return [draw(layers(name=f"head1/b{i}/fc.weight", most=most, dtype=dtype)) for i in range(count)]


def frozen(layer: Layer) -> Layer:
    """Return the same layer; writing to any of its arrays raises."""
    for array in (layer.weights, layer.gradients, layer.active):
        if array is not None:
            array.setflags(write=False)
    return layer


# Declarations.

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
shares = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0, 5e-4, 1e-8]))
positives = st.one_of(
    st.floats(0, exclude_min=True, allow_infinity=False), st.sampled_from([5e-4, 0.1, 1e-8, 1.5e-3])
)
below_one = st.floats(0, 1, exclude_max=True)
few = st.integers(1, 5)


def allocations() -> st.SearchStrategy[Allocation]:
    """Draw any rule; patterns are any text, so it need not fit a network."""
    common: dict[str, Any] = {
        "dense": st.lists(st.one_of(names, st.sampled_from(GROUPS)), max_size=2).map(tuple),
        "dense_budget": st.sampled_from(["inside", "outside"]),
    }
    return st.one_of(
        *[st.builds(rule, **common) for rule in (Uniform, ER, ERK)],
        *[st.builds(rule, last_density=shares, **common) for rule in (UniformPlus, ERKPlus)],
        st.builds(RandomGlobal, seed=st.integers(0, 2**40), **common),
        st.builds(Explicit, densities=st.dictionaries(names, shares, max_size=2), **common),
    )


def with_any_fields(criterion: type[Criterion]) -> st.SearchStrategy[Criterion]:
    """Draw a criterion, every field that its JSON Schema allows."""
    properties = criterion.model_json_schema()["properties"]
    return st.builds(criterion, **{name: any_value(schema) for name, schema in properties.items()})


def any_value(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Draw what one field of a criterion may be."""
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    if schema["type"] == "boolean":
        return st.booleans()
    assert schema["type"] == "number", f"say here how to draw {schema}"
    above, least, below, most = map(
        schema.get, ("exclusiveMinimum", "minimum", "exclusiveMaximum", "maximum")
    )
    return st.one_of(
        st.floats(
            least if above is None else above,
            most if below is None else below,
            exclude_min=above is not None,
            exclude_max=below is not None,
            allow_infinity=False,
            allow_nan=False,
        ),
        st.sampled_from([5e-4, 0.1, 1e-8, 1.5e-3]),
    )


def prunes() -> st.SearchStrategy[Criterion]:
    """Draw any criterion that prunes."""
    return st.one_of(st.sampled_from(PRUNES), *map(with_any_fields, policies.PRUNES.values()))


def grows() -> st.SearchStrategy[Criterion]:
    """Draw any criterion that grows."""
    return st.one_of(st.sampled_from(GROWS), *map(with_any_fields, policies.GROWS.values()))


def topologies(allocation: st.SearchStrategy[Allocation] | None = None) -> st.SearchStrategy[AnyTopology]:
    """Draw any topology, every field away from its default."""
    sparse = {"sparsity": below_one, "allocation": allocations() if allocation is None else allocation}
    drops = st.builds(
        lambda start, schedule, until, part: DropFraction(
            start=start,
            schedule=schedule,
            until=until,
            floor=0.0 if schedule == "constant" else min(start, start * part),
        ),
        shares,
        st.sampled_from(list(SCHEDULES)),
        shares,
        shares,
    )
    semantics = st.builds(
        Semantics,
        optimizer_step=st.sampled_from(["taken", "replaced"]),
        regrow=st.sampled_from(["out", "return"]),
        grown_value=st.sampled_from(["zero", "initial"]),
        rounding=st.sampled_from(["floor", "ceil", "nearest"]),
    )
    scopes = st.sampled_from(["layer", "global"])
    common: dict[str, Any] = {"interval": few, **sparse}
    growth = st.one_of(
        st.fixed_dictionaries({"grow": grows(), "scope": scopes}),
        st.fixed_dictionaries({"grow": st.builds(Momentum, beta=below_one), "scope": st.just("momentum")}),
    )
    dynamic = growth.flatmap(
        lambda chosen: st.builds(
            lambda **fields: Dynamic(**chosen, **fields),
            prune=prunes(),
            drop_fraction=drops,
            semantics=semantics,
            **common,
        )
    )
    pruning = {"prune": prunes().filter(lambda prune: not prune.only_below_zero), "scope": scopes, **common}
    window = st.tuples(shares, shares).map(sorted)
    gradual = window.flatmap(
        lambda pair: st.builds(GradualPruning, begin=st.just(pair[0]), end=st.just(pair[1]), **pruning)
    )
    return st.one_of(st.just(Dense()), st.builds(Static, **sparse), dynamic, gradual)


def plans() -> st.SearchStrategy[OneRun]:
    """Draw any plan."""
    return st.one_of(st.just(OneRun()), st.builds(OneRun, epochs=positives), st.builds(OneRun, steps=few))


def trainings() -> st.SearchStrategy[Training]:
    """Draw any recipe."""
    adam: dict[str, Any] = {"betas": st.tuples(below_one, below_one), "eps": positives}
    rates: dict[str, Any] = {"lr": positives, "weight_decay": st.floats(0, 1e9)}
    return st.builds(
        Training,
        optimizer=st.one_of(
            st.builds(SGD, momentum=below_one, nesterov=st.booleans(), **rates),
            st.builds(Adam, **adam, **rates),
            st.builds(AdamW, **adam, **rates),
        ),
        learning_rate=st.builds(
            LearningRate,
            schedule=st.sampled_from(["constant", "cosine", "steps"]),
            warmup=shares,
            final=shares,
            milestones=st.lists(shares, max_size=3).map(tuple),
            factor=shares,
        ),
        batch_size=few.map(lambda count: 12 * count),
        accumulation=st.sampled_from([1, 2, 3, 4]),
        clip_norm=st.none() | positives,
        precision=st.sampled_from(["float32", "bfloat16", "float16"]),
        deterministic=st.booleans(),
    )


def run_specs() -> st.SearchStrategy[RunSpec]:
    """Draw everything a run needs; the allocation need not be feasible."""
    split = st.one_of(st.integers(0, 9), names)
    return st.builds(
        RunSpec,
        name=names.filter(lambda name: name.strip(".") and not set(name) & {"/", "\\", *map(chr, range(32))}),
        preset=st.none() | st.sampled_from(list(PRESETS)),
        graph=st.sampled_from(
            [
                {"name": "mlp", "inputs": 12, "hidden": [8, 6], "norm": True},
                {"name": "mlp", "inputs": [1, 3, 4], "classes": 5},
                {"name": "wide_resnet", "depth": 10, "width": 1, "size": 8, "dropout": 0.1},
                perceptron().to_dict(),
            ]
        ),
        structure=st.one_of(
            st.just(Single()),
            st.builds(Independent, count=few),
            st.builds(MultiHead, split=split, heads=few),
        ),
        topology=topologies(),
        plan=plans(),
        aggregation=st.sampled_from(["mean_prob", "mean_logit", FittedAverage(held_out=0.25)]),
        loss=st.sampled_from(["mean", "sum", None]),
        training=trainings(),
        data=st.builds(
            Data,
            source=names,
            train=names,
            test=names,
            image=st.none() | names,
            label=st.none() | names,
            augment=st.sampled_from(["none", "crop", "flip_crop"]),
        ),
        seed=st.integers(0, 2**70),
    )
