"""Members made one after another: taken out of what was trained, kept, and joined to one ensemble."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeAlias, TypeVar

import numpy as np

from nt_core.checkpoint.directory import Checkpoint
from nt_core.metrics import Metrics
from nt_core.spec import EnsembleSpec
from nt_core.structure import Independent
from nt_core.training import ExploreRefine, Report, Trained

Model = TypeVar("Model")
COUNTS: Final = ("steps", "examples", "seconds", "skipped")
"""What is recorded of each member's training, by its names in :class:`nt_core.training.Trained`."""
Members: TypeAlias = MutableMapping[int, Checkpoint]
"""Finished members by their number, from 1: a dict, or something that writes them down."""

Leave: TypeAlias = Callable[[Model, int], None]
"""Is shown a model whenever it is a finished member that is about to become another, and its number."""


@dataclass(frozen=True, kw_only=True)
class Verbs(Generic[Model]):
    """What a backend does when members are made one after another.

    Attributes:
        train: (spec, leave, report) → what was trained in one go; shows each member it is about to leave.
        checkpoint: model → its portable checkpoint.
        restore: checkpoint → model.
        evaluate: model → metrics on the test set, if there is one.
        kept: is told of a turn whose members are kept: nothing needs to go on from its states any longer.
    """

    train: Callable[[EnsembleSpec, Leave[Model], Report], Trained[Model]]
    checkpoint: Callable[[Model], Checkpoint]
    restore: Callable[[Checkpoint], Model]
    evaluate: Callable[[Model], Metrics | None]
    kept: Callable[[EnsembleSpec], None]


def train_members(
    spec: EnsembleSpec, verbs: Verbs[Model], members: Members, report: Report = lambda _: None
) -> Trained[Model]:
    """Train what a spec declares, in as many goes as its plan says.

    Args:
        spec: the ensemble.
        verbs: the backend's.
        members: where members go as soon as they are finished. Those that are there already are not trained
            again where members are trained one after another; where a plan makes them of one network, all are
            made anew.
        report: receives what the backend reports and a ``member`` event for each; where members are trained
            one after another, every event says which: ``trained``.
    """

    def keep(number: int, checkpoint: Checkpoint, **record: Any) -> None:
        found = member(checkpoint, number, spec.result, record)
        # Told before it is kept: what is told of members that are not kept is taken back after a crash.
        report({"event": "member", "trained": (number,), "members": spec.result.members})
        members[number] = found

    if isinstance(spec.plan, ExploreRefine):
        for number in [*members]:
            if number > spec.plan.members:
                del members[number]
        trained = verbs.train(spec, lambda model, number: keep(number, verbs.checkpoint(model)), report)
        keep(spec.plan.members, verbs.checkpoint(trained.model))
        return _joined(spec, verbs, members, _counts(trained))
    if spec.turns == (spec,):
        return verbs.train(spec, lambda *_: None, report)
    for turn in spec.turns:
        assert isinstance(turn.structure, Independent)
        numbers = turn.structure.numbers
        if all(number in members for number in numbers):
            continue
        trained = verbs.train(turn, lambda *_: None, _naming(numbers, report))
        checkpoint, counts = verbs.checkpoint(trained.model), _counts(trained)
        counts["seconds"] /= len(numbers)
        for number in numbers:
            keep(number, checkpoint, **counts)
        verbs.kept(turn)
    records = [members[number].record for number in _numbers(spec)]
    firsts = [members[_numbers(turn)[0]].record for turn in spec.turns]
    totals = {
        "seconds": sum(record["seconds"] for record in records),
        "skipped": sum(record.get("skipped", 0) for record in firsts),
    }
    return _joined(spec, verbs, members, {**firsts[0], **totals})


def member(
    checkpoint: Checkpoint, number: int, whole: EnsembleSpec, record: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Copy one member out of a checkpoint, as a checkpoint of its own.

    Args:
        checkpoint: of independent members, this one among them, or of one network, which becomes the member.
        number: of the member, from 1.
        whole: the ensemble that it belongs to.
        record: what shall stand beside it.
    """
    assert isinstance(whole.structure, Independent)
    heads = [part.name for part in checkpoint.spec.layout.heads]
    found, name = (heads[0] if len(heads) == 1 else f"head{number}"), f"head{number}"

    def renamed(items: Mapping[str, Any]) -> dict[str, Any]:
        own = {key: item for key, item in items.items() if key.startswith(f"{found}/")}
        return {name + key.removeprefix(found): item for key, item in own.items()}

    values = {key: np.array(value) for key, value in renamed(checkpoint.values).items()}
    spec = whole.replace(
        structure=whole.structure.replace(only=(number,)), plan=whole.plan.replace(at_once=None)
    )
    return Checkpoint(spec=spec, values=values, masks=renamed(checkpoint.masks), record=record or {})


def join(spec: EnsembleSpec, members: Mapping[int, Checkpoint]) -> Checkpoint:
    """Put members together.

    Args:
        spec: the ensemble that training leaves, of independent members.
        members: each of its members by number.
    """
    each = [members[number] for number in _numbers(spec)]
    return Checkpoint(
        spec=spec,
        values={name: value for one in each for name, value in one.values.items()},
        masks={name: mask for one in each for name, mask in one.masks.items()},
    )


def _naming(numbers: Sequence[int], report: Report) -> Report:
    return lambda event: report({**event, "trained": numbers})


def _numbers(spec: EnsembleSpec) -> tuple[int, ...]:
    assert isinstance(spec.structure, Independent)
    return spec.structure.numbers


def _counts(trained: Trained[Any]) -> dict[str, Any]:
    return {name: getattr(trained, name) for name in COUNTS}


def _joined(
    spec: EnsembleSpec, verbs: Verbs[Model], members: Members, counts: Mapping[str, Any]
) -> Trained[Model]:
    model = verbs.restore(join(spec.result, members))
    return Trained(model=model, metrics=verbs.evaluate(model), **{name: counts[name] for name in COUNTS})
