"""Tasks of a training beside its steps: counting, timing, evaluation, reports and saved states."""

from __future__ import annotations

import time
from typing import Any

import keras
from keras import ops

from nt_core.finite import nothing_finite, skipped
from nt_core.metrics import Metrics
from nt_core.states import State, States, Stopped
from nt_core.training import Batches, Report, Training
from nt_keras.compile import Ensemble
from nt_keras.engines import engine
from nt_keras.engines.devices import device_of
from nt_keras.engines.engine import to_numpy
from nt_keras.evaluate import evaluate
from nt_keras.network.losses import EnsembleLoss
from nt_keras.topology.finite import SCALE_TOO_LARGE, TAKEN, VERDICT, not_taken
from nt_keras.training.position import Position
from nt_keras.training.schedule import Schedule
from nt_keras.training.states import content


class ExampleLoss(keras.metrics.Mean):  # type: ignore[misc]
    """Mean loss over examples, which have equal weight for any weight of their call in its step."""

    def __init__(self, loss: EnsembleLoss) -> None:
        super().__init__(name="example_loss")
        self._direction = "down"  # for callbacks that monitor it
        self.loss = loss

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        seen = None if sample_weight is None else ops.cast(sample_weight > 0, self.dtype)
        super().update_state(self.loss.call(y_true, y_pred), seen)


class Keeper:
    """Keeper of a training's states.

    Attributes:
        found: the last state of an interrupted training; None: there is none.
    """

    def __init__(self, states: States, training: dict[str, Any]) -> None:
        self.states, self.training = states, training
        self.found = states.latest(training)

    def keep(self, model: Ensemble, loss: ExampleLoss, position: Position, total_steps: int) -> None:
        """Save the state if it is time, or if the training is to stop.

        Raises:
            Stopped: the training is to stop.
        """
        step = position.steps
        stopping = self.states.stopping() and step < total_steps
        if stopping or self.states.due(step):
            whole = content(model)
            whole |= {"loss": [to_numpy(each) for each in loss.variables], "position": vars(position)}
            self.states.save(State(step=step, training=self.training, content=whole))
        if stopping:
            raise Stopped(f"stopped after step {step} of {total_steps}")


class Watch(keras.callbacks.Callback):  # type: ignore[misc]
    """Callback that counts, times, evaluates, reports, saves states, and stops a training within an epoch."""

    def __init__(
        self,
        training: Training,
        schedule: Schedule,
        test: Batches | None,
        report: Report,
        loss: ExampleLoss,
        keeper: Keeper | None,
    ) -> None:
        super().__init__()
        self.training, self.schedule, self.test, self.report = training, schedule, test, report
        self.keeper, self.found = keeper, None if keeper is None else keeper.found
        self.loss = loss
        self.at = Position() if self.found is None else Position(**self.found.content["position"])
        self.began = 0.0
        self.metrics: Metrics | None = None
        self.started = False

    def on_train_begin(self, logs: Any = None) -> None:
        if self.started:
            return
        self.started = True
        self.report(
            {
                "event": "start",
                "total_steps": self.schedule.total_steps,
                "total_epochs": self.schedule.epochs,
                "device": device_of(self.model),
            }
        )

        if self.found is not None:
            epoch = self.at.calls // self.schedule.calls_per_epoch
            self.report({"event": "resumed", "step": self.at.steps, "epoch": epoch})

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.began = time.perf_counter() - self.at.seconds
        if self.at.calls % self.schedule.calls_per_epoch == 0:
            self.at.begin_epoch()
        elif self.found is not None:
            for variable, value in zip(self.loss.variables, self.found.content["loss"], strict=True):
                variable.assign(value)
        self.found = None

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        assert logs is not None
        self.at.calls += 1
        if self.at.calls % self.schedule.accumulation:
            return
        if int(logs[VERDICT]) != TAKEN:
            self._note_untaken(int(logs[VERDICT]))
            return
        self.at.steps += 1
        self.report({"event": "step", "step": self.at.steps})
        if self.at.steps >= self.schedule.total_steps:
            self.model.stop_training = True
        elif self.at.calls % self.schedule.calls_per_epoch:
            self.at.seconds = time.perf_counter() - self.began
            self._keep()

    def _note_untaken(self, verdict: int) -> None:
        """Count a skipped batch, or stop; a step with too large a loss scale does neither."""
        if verdict == SCALE_TOO_LARGE:
            return
        step, lr = self.at.steps + 1, self._rate(self.at.steps)
        if self.training.non_finite == "stop":
            engine.sync(self.model)
            raise not_taken(self.model, step, lr)
        self.at.skipped += 1
        self.report(skipped(step, self.at.skipped))

    def _rate(self, step: int) -> float:
        factor = self.schedule.timeline.factor(self.training.learning_rate, step)
        return float(self.training.optimizer.lr * factor)

    def _keep(self) -> None:
        if self.keeper is not None:
            self.keeper.keep(self.model, self.loss, self.at, self.schedule.total_steps)

    def _expect_progress(self, epoch: int) -> None:
        """Stop if no batch of the epoch could be trained on, and no smaller loss scale will change that."""
        at = self.at
        batches = (at.calls - at.first_call) // self.schedule.accumulation
        futile = at.steps == at.first_step and self.model.optimizer.scale < 1
        if at.skipped - at.first_skipped == batches or futile:
            raise nothing_finite(epoch, at.steps, self._rate(at.steps))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        assert logs is not None
        logs.pop(VERDICT)
        self.at.seconds = time.perf_counter() - self.began
        self._expect_progress(epoch + 1)
        record = {
            "epoch": epoch + 1,
            "step": self.at.steps,
            "loss": float(self.loss.result()),
            "lr": self._rate(max(self.at.steps - 1, 0)),
            "density": self.model.density,
            "seconds": self.at.seconds,
        }
        if self.at.skipped:
            record["skipped"] = self.at.skipped
        if self.test is not None:
            self.metrics = evaluate(self.model, self.test)
            record |= self.metrics.summary()
        logs.update(record)
        self.report({"event": "epoch", **record, **({} if self.metrics is None else self.metrics.pairs())})
        self._keep()
