"""The training loop, which is ``keras.Model.fit``: a recipe and a dataset in, a trained model out."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras

from nt_core import DataError, EnsembleSpec
from nt_core.checkpoint import Leave, Members, Verbs, train_members
from nt_core.random import expect_seed
from nt_core.states import States, identity
from nt_core.training import Batches, Report, Trained, Training, first_examples, trainable
from nt_keras.batches import as_batches, expect_repeatable
from nt_keras.checkpoint import checkpoint, restore
from nt_keras.compile import Ensemble, compile  # noqa: A004
from nt_keras.engines.devices import has_accelerator, on_device
from nt_keras.engines.engine import deterministic
from nt_keras.evaluate import evaluate
from nt_keras.network.losses import ensemble_loss
from nt_keras.topology.finite import Guard, release
from nt_keras.topology.optimizers import make_optimizer
from nt_keras.topology.sparse import sparse
from nt_keras.topology.topology import TopologyUpdate
from nt_keras.training.saliency import prune_at_init
from nt_keras.training.schedule import Schedule
from nt_keras.training.states import restore_model, restore_optimizer
from nt_keras.training.watch import ExampleLoss, Keeper, Watch

PRECISIONS = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


def train(
    spec: EnsembleSpec,
    training: Training,
    data: Any,
    *,
    seed: int = 0,
    test: Any = None,
    device: str | None = None,
    trackers: Sequence[str] = (),
    folder: str | Path | None = None,
    report: Report = lambda _: None,
    members: Members | None = None,
    states: States | None = None,
) -> Trained[Ensemble]:
    """Train the ensemble of a spec; the twin of ``nt_torch.train``.

    Args:
        spec: the ensemble; its plan says how long.
        training: the recipe.
        data: the training data: (inputs, labels) as arrays or tensors, a ``TensorDataset``, a ``DataLoader``,
            or another kind that :func:`nt_keras.batches.as_batches` lists.
        seed: keys initial values, masks, growth and dropout; from 0 to 2**64 - 1.
        test: evaluated after each epoch, if given; of the same kinds.
        device: ``"cpu"``, ``"gpu:1"``, …; None: the one that Keras finds.
        trackers: ``"tensorboard"``, or none.
        folder: where trackers write.
        report: receives plain records with an ``event``: ``start``, ``step``, ``update``,
            ``epoch``, ``skipped`` where a batch was passed over, ``resumed`` if it goes on from a state,
            ``dropped`` where each epoch's last examples are too few for batch normalisation and left out, and
            ``member`` where members are made one after another.
        members: where those go as soon as they are finished (:mod:`nt_core.checkpoint`); None: nowhere.
        states: the folder of its states. If it holds one, the training resumes from the last, to the same
            end, bit for bit, as without the interruption. Call ``states.clear()`` once the result is kept.
            None: no state is saved.

    Raises:
        DataError: there is nothing to train on, or a tracker or precision is not to be had.
        NotFiniteError: a loss or gradient is not finite, and the recipe says to stop; or so is a whole epoch.
        CheckpointError: a state cannot be written, or is of another training.
        Stopped: ``states.stopping`` said so; the state is saved.
    """
    expect_seed(seed)
    if states is not None:
        expect_repeatable(data)
    data = as_batches(data, spec, seed=seed)
    test = None if test is None else as_batches(test, spec, where="test")
    classes = spec.graph.output_shape[-1]
    taken = trainable(data, training, spec.structure, spec.layout, classes=classes, report=report)
    spec.structure.expect_batch_size(training.batch_size // training.accumulation)
    with on_device(device), deterministic(training.deterministic):
        _expect_precision(training)
        verbs = Verbs(
            train=lambda part, leave, report: _train_one(
                part,
                training,
                taken,
                seed,
                test,
                _trackers(trackers, folder),
                leave,
                report,
                None if states is None else states.of(part),
            ),
            checkpoint=checkpoint,
            restore=lambda saved: restore(saved, device=device),
            evaluate=lambda model: None if test is None else evaluate(model, test),
            kept=lambda part: None if states is None else states.of(part).clear(),
        )
        trained = train_members(spec, verbs, {} if members is None else members, taken.counting(report))
        return replace(trained, dropped=taken.dropped)


def _train_one(
    spec: EnsembleSpec,
    training: Training,
    data: Batches,
    seed: int,
    test: Batches | None,
    callbacks: Sequence[keras.callbacks.Callback],
    leave: Leave[Ensemble],
    report: Report,
    states: States | None,
) -> Trained[Ensemble]:
    schedule = Schedule.of(spec, training, data)
    keeper = None if states is None else Keeper(states, identity(spec, training, seed, len(data)))
    found = None if keeper is None else keeper.found
    model = compile(spec, seed=seed, dtype=PRECISIONS[training.precision])
    if found is not None:
        restore_model(found.content, model)
    elif spec.topology.examples_needed:
        prune_at_init(model, *first_examples(data, spec.topology.examples_needed), seed=seed)
    updates = TopologyUpdate(
        schedule.total_steps,
        seed=seed,
        escapes=schedule.timeline.escapes,
        leaving=lambda: leave(model, schedule.timeline.member_after(watch.at.steps + 1)),
        report=lambda changed: report(changed.to_event()),
    )
    optimizer = make_optimizer(training, schedule.total_steps, schedule.timeline.phases)
    loss = ensemble_loss(spec)
    mean_loss = ExampleLoss(loss)
    watch = Watch(training, schedule, test, report, mean_loss, keeper)
    optimizer.exclude_from_weight_decay(var_list=list(model.undecayed))
    guard = Guard(sparse(optimizer, model) if model.masked else optimizer, training.precision == "float16")
    model.compile(optimizer=guard, loss=loss, weighted_metrics=[mean_loss], auto_scale_loss=False)
    model.build_optimizer()
    guard.watch(model, mean_loss, training.non_finite)
    if found is not None:
        restore_optimizer(found.content, model)
    while watch.at.steps < schedule.total_steps:  # more epochs than planned where steps were not taken
        part = schedule.part(watch.at.calls)
        model.fit(
            schedule.batches(part, spec.structure, data, seed),
            steps_per_epoch=schedule.calls_per_epoch - part.first,
            initial_epoch=part.begin,
            epochs=part.end,
            callbacks=[watch, updates, *callbacks],
            shuffle=False,
            verbose=0,
        )
    release(model)
    metrics = watch.metrics
    return Trained(
        model=model,
        steps=watch.at.steps,
        examples=schedule.examples_after(watch.at.calls),
        seconds=watch.at.seconds,
        metrics=evaluate(model, test) if metrics is None and test is not None else metrics,
        skipped=watch.at.skipped,
    )


def _expect_precision(training: Training) -> None:
    if training.precision == "float16" and not has_accelerator():
        raise DataError("training.precision: float16 needs a GPU; use bfloat16 or float32 on a CPU")


def _trackers(names: Sequence[str], folder: str | Path | None) -> list[keras.callbacks.Callback]:
    """Make the callbacks of trackers.

    Raises:
        DataError: one is unknown, or not installed.
    """
    for name in names:
        if name != "tensorboard":
            raise DataError(
                f"tracker {name!r}: the Keras backend has tensorboard; "
                "for others give fit their own callbacks in a script of your own"
            )
        missing = [each for each in ("tensorboard", "tensorflow") if importlib.util.find_spec(each) is None]
        if missing:
            raise DataError(
                f"tracker 'tensorboard': {' and '.join(missing)} must be installed for Keras' callback"
            )
    return [
        keras.callbacks.TensorBoard(log_dir=str(Path(folder or ".") / "run"), write_graph=False)
        for _ in names
    ]
