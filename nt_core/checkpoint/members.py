"""Members made one after another: extracted from the trained model, kept, and joined to one ensemble."""

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
"""Figures recorded of each member's training, by their names in :class:`nt_core.training.Trained`."""
Members: TypeAlias = MutableMapping[int, Checkpoint]
"""Finished members by their number, from 1: a dict, or a mapping that writes them to disk."""

Leave: TypeAlias = Callable[[Model, int], None]
"""Function of a model and a member's number, called when that member is finished and the next begins."""


@dataclass(frozen=True, kw_only=True)
class Verbs(Generic[Model]):
    """Functions of a backend that members made one after another need.

    Attributes:
        train: (spec, leave, report) → result of one training; calls ``leave`` for each member but the last.
        checkpoint: model → its portable checkpoint.
        restore: checkpoint → model.
        evaluate: model → metrics on the test set, if there is one.
        kept: called with a turn whose members are kept, because its states are not needed any longer.
    """

    train: Callable[[EnsembleSpec, Leave[Model], Report], Trained[Model]]
    checkpoint: Callable[[Model], Checkpoint]
    restore: Callable[[Checkpoint], Model]
    evaluate: Callable[[Model], Metrics | None]
    kept: Callable[[EnsembleSpec], None]


def train_members(
    spec: EnsembleSpec, verbs: Verbs[Model], members: Members, report: Report = lambda _: None
) -> Trained[Model]:
    """Train an ensemble in the turns of its plan.

    Args:
        spec: of the ensemble.
        verbs: functions of the backend.
        members: receives each finished member. Members that it contains already are not trained again where
            members are trained one after another. Where a plan makes the members from one network, all are
            made anew.
        report: receives the backend's events, and a ``member`` event for each member. Where members are
            trained one after another, every event names the trained members in ``trained``.
    """

    def keep(number: int, checkpoint: Checkpoint, **record: Any) -> None:
        found = member(checkpoint, number, spec.result, record)
        # Reported before it is kept, because a crash takes back the reports of members that are not kept.
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
    """Extract one member from a checkpoint, as a checkpoint of its own.

    Args:
        checkpoint: of independent members, among them this one, or of one network, which becomes the member.
        number: of the member, from 1.
        whole: the ensemble of the member.
        record: of the new checkpoint.
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
    """Join members to one checkpoint.

    Args:
        spec: of the trained ensemble of independent members.
        members: each of the ensemble's members by number.
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
