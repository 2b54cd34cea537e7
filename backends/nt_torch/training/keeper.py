"""Saving of a training's states: when they are due, and when the training is to stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from accelerate import Accelerator

from nt_core.states import State, States, Stopped
from nt_torch.topology.topology import Topology
from nt_torch.training.states import content

ASKED_EVERY: Final = 8
"""Steps from one time to the next that several processes ask each other whether to stop or save."""


@dataclass(frozen=True, kw_only=True)
class Keeper:
    """Saves states of one training.

    Attributes:
        states: the folder they go to; None: nothing is saved.
        identity: of the training, as :func:`nt_core.states.identity` has it.
        accelerator: of the training.
        topology: of the training.
        position: returns the trainer's own counts and settings, as arrays and plain values.
    """

    states: States | None
    identity: Mapping[str, Any]
    accelerator: Accelerator
    topology: Topology
    position: Callable[[], Mapping[str, Any]]

    def keep(self) -> None:
        """Save a state if one is due, or if the training is to stop.

        Raises:
            Stopped: the training is to stop; its state is saved.
        """
        if self.states is None:
            return
        steps, total = self.topology.steps, self.topology.total_steps
        stopping, due = self.states.stopping() and steps < total, self.states.due(steps)
        if self.accelerator.num_processes > 1:
            if steps % ASKED_EVERY and not (due and self.states.every):
                return
            flags = torch.tensor([stopping, due], dtype=torch.int32, device=self.accelerator.device)
            stopping, due = (self.accelerator.reduce(flags, "sum") > 0).tolist()
        if stopping or due:
            self._save(self.states)
        if stopping:
            raise Stopped(f"stopped after step {steps} of {total}")

    def _save(self, states: States) -> None:
        steps = self.topology.steps
        parts = partial(states.new_parts, steps)
        whole = {**content(self.accelerator, self.topology, parts), **self.position()}
        if self.accelerator.is_main_process:
            states.save(State(step=steps, training=self.identity, content=whole))
