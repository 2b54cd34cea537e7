"""The training loop, on Hugging Face accelerate: device, precision, accumulation and trackers are its."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderShard
from accelerate.state import PartialState
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from nt_core import DataError, EnsembleSpec
from nt_core.checkpoint import Leave, Members, Verbs, train_members
from nt_core.finite import nothing_finite
from nt_core.metrics import Metrics
from nt_core.random import Random, expect_seed
from nt_core.states import State, States, identity
from nt_core.training import Batches, Report, Share, Trained, Training, first_examples, trainable
from nt_torch.batches import as_batches, expect_repeatable
from nt_torch.checkpoint import checkpoint, restore
from nt_torch.compile import compile  # noqa: A004
from nt_torch.evaluate import evaluate
from nt_torch.network.execution import Execution
from nt_torch.network.measurement import measure_heads, unchanged
from nt_torch.network.model import Ensemble, fast_layout, find_device
from nt_torch.processes.group import from_main
from nt_torch.processes.shards import mesh_of
from nt_torch.topology.finite import Guard
from nt_torch.topology.optimizers import make_optimizer
from nt_torch.topology.topology import Topology
from nt_torch.training.acceleration import accelerate_alone, deterministic, make_accelerator
from nt_torch.training.fsdp import expect_divisible, with_shards
from nt_torch.training.fsdp import shard as divide
from nt_torch.training.keeper import Keeper
from nt_torch.training.loading import Epochs, expect_batch_size
from nt_torch.training.position import Position
from nt_torch.training.saliency import prune_at_init
from nt_torch.training.states import begun, restore_model, restore_random, restore_state
from nt_torch.training.steps import Steps


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
    shard: bool = False,
    execution: Execution | None = None,
) -> Trained[Ensemble]:
    """Train the ensemble of a spec.

    Args:
        spec: the ensemble; its plan says how long.
        training: the recipe.
        data: the training data: (inputs, labels) as arrays or tensors, a ``TensorDataset``, a ``DataLoader``,
            or another kind that :func:`nt_torch.batches.as_batches` lists.
        seed: keys initial values, masks, growth and dropout; from 0 to 2**64 - 1.
        test: evaluated after each epoch, if given; of the same kinds.
        device: ``"cpu"``, ``"cuda:1"``, …; None: the one that accelerate finds.
        trackers: of accelerate, ``"tensorboard"`` say.
        folder: where trackers write.
        report: receives plain records with an ``event``: ``start``, ``step``, ``update``,
            ``epoch``, ``skipped`` where a batch was passed over, ``resumed`` if it goes on from a state,
            ``heads`` if it was measured which way of computing them is faster, ``dropped`` where each epoch's
            last examples are too few for batch normalisation and left out, and ``member`` where members are
            made one after another.
        members: where those go as soon as they are finished (:mod:`nt_core.checkpoint`); None: nowhere.
        states: the folder of its states. If it holds one, the training resumes from the last, to the same
            end, bit for bit, as without the interruption. Call ``states.clear()`` once the result is kept.
            None: no state is saved.
        shard: divide weights, gradients, masks and the optimiser's state among the processes that
            ``torchrun`` started (FSDP2), instead of keeping them whole in each.
        execution: how it is computed; None: as the state that it goes on from was, else heads in a loop.

    Raises:
        DataError: there is nothing to train on, or it cannot be sharded.
        SpecError: it cannot be computed so.
        NotFiniteError: a loss or gradient is not finite, and the recipe says to stop; or so is a whole epoch.
        CheckpointError: a state cannot be written, or is of another training.
        Stopped: ``states.stopping`` said so; the state is saved.
    """
    expect_seed(seed)
    if states is not None:
        expect_repeatable(data)
    data = as_batches(data, spec, seed=seed)
    test = None if test is None else as_batches(test, spec, where="test")
    with torch.random.fork_rng(), deterministic(training.deterministic), accelerate_alone():
        state = PartialState(cpu=device is not None and find_device(device).type == "cpu")
        finished: Members = {} if members is None else members
        if state.num_processes > 1:
            found = from_main(lambda: {**finished})
            finished = finished if state.is_main_process else found
        told = report if state.is_main_process else lambda _: None
        taken = trainable(
            data,
            training,
            spec.structure,
            spec.layout,
            classes=spec.graph.output_shape[-1],
            processes=state.num_processes,
            report=told,
        )

        def train_one(part: EnsembleSpec, leave: Leave[Ensemble], report: Report) -> Trained[Ensemble]:
            accelerator = make_accelerator(training, device, trackers, folder)
            torch.manual_seed(_stream(seed, part, accelerator.process_index))
            own = None if states is None else states.of(part)
            run = _Run(part, training, taken, seed, accelerator, report, leave, own, shard, execution)
            return run.train(test)

        verbs = Verbs(
            train=train_one,
            checkpoint=checkpoint,
            restore=lambda saved: restore(saved, device=device),
            evaluate=lambda model: (
                evaluate(model, test) if test is not None and state.is_main_process else None
            ),
            kept=lambda part: states.of(part).clear() if states and state.is_main_process else None,
        )
        trained = train_members(spec, verbs, finished, taken.counting(told))
        return replace(trained, dropped=taken.dropped)


def _stream(seed: int, part: EnsembleSpec, process: int) -> int:
    """Return the seed of the random numbers, dropout's say, that a process draws while it trains a part."""
    members = getattr(part.structure, "only", None) or ()
    stream = Random(seed).at(weight=",".join(map(str, members)), purpose=f"draws of process {process}")
    return stream.key[0] | stream.key[1] << 32


class _Run:
    """One training, from its model to its result."""

    def __init__(
        self,
        spec: EnsembleSpec,
        training: Training,
        data: Batches,
        seed: int,
        accelerator: Accelerator,
        report: Report,
        leave: Leave[Ensemble],
        states: States | None,
        shard: bool,
        execution: Execution | None,
    ) -> None:
        self.training, self.accelerator, self.report = training, accelerator, report
        this = identity(spec, training, seed, len(data))
        found = from_main(lambda: None if states is None else states.latest(this))
        self.spec, self.share = spec, Share(accelerator.process_index, accelerator.num_processes)
        expect_batch_size(training, spec.structure, self.share.of)
        if shard:
            expect_divisible(spec, training)
        self.shard = shard
        self.examples = len(data)
        self.steps_per_epoch = math.ceil(len(data) / training.batch_size)
        size = training.batch_size // training.accumulation
        self.epochs = Epochs(spec.structure, data, size, seed, self.share)
        self.loader = DataLoaderShard(self.epochs, batch_size=None, device=accelerator.device)
        model = compile(spec, seed=seed)
        model = divide(model.to(accelerator.device)) if shard else fast_layout(model).to(accelerator.device)
        self.execution = begun(execution, None if found is None else found.content)
        if shard and self.execution.heads != "loop":
            raise DataError(f"shard: heads={self.execution.heads!r} stacks whole weights; leave --heads out")
        model.execution = self.execution.replace(heads="loop") if self._is_open else self.execution
        if found is not None:
            found = replace(found, content=with_shards(found.content, found.parts, mesh_of(model)))
            restore_model(found.content, model)
        elif spec.topology.examples_needed:
            prune_at_init(model, *first_examples(data, spec.topology.examples_needed), seed=seed)
        optimizer = accelerator.prepare_optimizer(make_optimizer(model, training))
        # What is sharded must not be given to DistributedDataParallel, too.
        self.model, self.optimizer = accelerator.prepare_model(model, evaluation_mode=shard), optimizer
        self.timeline = spec.timeline(self.steps_per_epoch)
        self.topology = Topology(
            self.model,
            self.optimizer,
            total_steps=self.timeline.total_steps,
            seed=seed,
            escapes=self.timeline.escapes,
            leaving=lambda: leave(self.model, self.timeline.member_after(self.topology.steps)),
        )
        self.steps = Steps(
            spec=spec,
            training=training,
            timeline=self.timeline,
            accelerator=accelerator,
            model=self.model,
            topology=self.topology,
            guard=Guard(self.topology.model, training.non_finite),
            report=report,
        )
        self.keeper = Keeper(
            states=states,
            identity=this,
            accelerator=accelerator,
            topology=self.topology,
            position=self._position,
        )
        self.at = Position()
        self.resumed = found is not None
        self.random: Mapping[str, Any] | None = None
        if found is not None:
            self._go_on_from(found)

    def _go_on_from(self, state: State) -> None:
        restore_state(state.content, self.accelerator, self.topology)
        position = dict(state.content["position"])
        losses = torch.from_numpy(position.pop("losses")).to(self.accelerator.device)
        self.at = Position(**position, losses=list(losses * self.accelerator.is_main_process))
        self.random = state.content

    def _position(self) -> Mapping[str, Any]:
        """Return the counts and settings that a state holds beside model, optimiser, and topology."""
        position = {**vars(self.at), "losses": self._losses().cpu().numpy()}
        return {"position": position, "execution": self.execution.model_dump()}

    def _losses(self) -> Tensor:
        """Return each micro-batch's loss times its examples, over all processes, summed in their order."""
        own = torch.stack(self.at.losses)
        every: Tensor = self.accelerator.gather(own[None])
        return sum(every[1:], every[0])

    def train(self, test: Batches | None) -> Trained[Ensemble]:
        total_steps = self.topology.total_steps
        epochs = math.ceil(total_steps / self.steps_per_epoch)
        self.report(
            {
                "event": "start",
                "total_steps": total_steps,
                "total_epochs": epochs,
                "device": str(self.accelerator.device),
            }
        )
        if self.random is not None:
            self.report({"event": "resumed", "step": self.topology.steps, "epoch": self.at.epoch - 1})
        metrics = None
        while True:
            loss = self._epoch()
            metrics = self._evaluate(test)
            self._report_epoch(self.at.epoch, loss, self.at.seconds, metrics)
            if self.topology.steps >= total_steps:  # later than planned where steps were not taken
                break
            self.at = self.at.next(self.topology.steps)
        model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        if self.shard:
            model = restore(checkpoint(model), device=self.accelerator.device)
        self.accelerator.end_training()
        self.topology.close()
        return Trained(
            model=model.eval(),
            steps=self.topology.steps,
            examples=self.at.examples + self.at.seen,
            seconds=self.at.seconds,
            metrics=metrics,
            skipped=self.at.skipped,
        )

    def _evaluate(self, test: Batches | None) -> Metrics | None:
        """Evaluate on the main process alone, or on all where weights are sharded."""
        if test is None or not (self.shard or self.accelerator.is_main_process):
            return None
        metrics = evaluate(self.topology.model, test)
        return metrics if self.accelerator.is_main_process else None

    def _epoch(self) -> float:
        """Train one epoch, or the rest of it; return its mean loss."""
        self.model.train()
        at, began = self.at, time.perf_counter() - self.at.seconds
        self.epochs.number, self.epochs.first = at.epoch, at.calls
        batches = iter(self.loader) if at.seen < self.examples else iter(())
        while self.topology.steps < self.topology.total_steps:
            batch = next(batches, None)
            if self.random is not None:  # a loader draws a number of its own when it begins
                restore_random(self.random, self.share.index)
                self.random = None
            if batch is None:
                break
            inputs, labels, count, part = batch
            if self.resumed:
                self._settle(inputs, labels)
            if self._is_open:
                self._choose_heads(inputs, labels)
            before = self.topology.steps
            share = self._share(at.seen, count) * part * self.share.of
            at.add(self.steps.backward(inputs, labels, share, at) * count * part, count)
            if self.accelerator.sync_gradients:
                self.steps.step(self.optimizer, at)
            at.seconds = time.perf_counter() - began
            if self.topology.steps > before:
                self.keeper.keep()
        self._expect_progress()
        return float(self._losses().double().sum()) / (at.seen - at.left_out)

    def _settle(self, inputs: Tensor, labels: Tensor) -> None:
        """Make one backward pass whose gradients are dropped, if several processes average gradients.

        DistributedDataParallel arranges its buckets anew after its first backward pass, and the order in
        which an element is summed over processes depends on its place in a bucket.
        """
        self.resumed = False
        if not isinstance(self.model, DistributedDataParallel):
            return
        with unchanged(self.topology.model):
            torch.autograd.backward(self.steps.loss(self.model, inputs, labels))
        self.optimizer.zero_grad()

    def _expect_progress(self) -> None:
        """Stop if no batch of the epoch could be trained on, and no smaller loss scale will change that."""
        steps, scaler = self.topology.steps, self.accelerator.scaler
        futile = scaler is not None and steps == self.at.first_step and scaler.get_scale() < 1
        if self.at.left_out == self.at.seen or futile:
            raise nothing_finite(self.at.epoch, steps, self.steps.lr)

    @property
    def _is_open(self) -> bool:
        """Whether it is still to be measured how heads are computed."""
        return self.execution.heads == "auto"

    def _choose_heads(self, inputs: Tensor, labels: Tensor) -> None:
        model = self.topology.model
        found = from_main(lambda: measure_heads(model, lambda: self.steps.loss(model, inputs, labels)))
        model.execution = self.execution = self.execution.replace(heads=found.heads)
        self.report(found.to_event())

    def _share(self, seen: int, count: int) -> float:
        """Return a micro-batch's share of its optimiser step, times the number accelerate divides by."""
        size = self.training.batch_size
        examples = min(size, self.examples - seen // size * size)
        return count * self.training.accumulation / examples

    def _report_epoch(self, number: int, loss: float, seconds: float, metrics: Metrics | None) -> None:
        record = {
            "epoch": number,
            "step": self.topology.steps,
            "loss": loss,
            "lr": self.steps.lr,
            "density": self.topology.density,
            "seconds": seconds,
        }
        if self.at.skipped:
            record["skipped"] = self.at.skipped
        if metrics is not None:
            record |= metrics.summary()
        self.accelerator.log(record, step=self.topology.steps)
        self.report({"event": "epoch", **record, **({} if metrics is None else metrics.pairs())})
