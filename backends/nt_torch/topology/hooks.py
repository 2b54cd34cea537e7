"""Hooks around the steps of any optimiser, however its calls nest."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

_ATTACHED: weakref.WeakKeyDictionary[torch.optim.Optimizer, weakref.ref[StepHooks]] = (
    weakref.WeakKeyDictionary()
)
"""The hooks that an optimiser has, so that later ones take their place."""


@dataclass(frozen=True, kw_only=True)
class Stepping:
    """The calls that :class:`StepHooks` makes, in this order, once for each step of the optimiser.

    Attributes:
        begin: checks that a step may begin; an error leaves everything as it was.
        prepare: readies the gradients for the optimiser; True: a closure has just computed them again.
        finish: follows the changes that the optimiser made.
        loaded: follows a state that the optimiser has loaded.
    """

    begin: Callable[[], None]
    prepare: Callable[[bool], None]
    finish: Callable[[], None]
    loaded: Callable[[], None]


class StepHooks:
    """PyTorch's own hooks on an optimiser, made into one sequence of calls for each step.

    A subclass that calls its base's ``step`` runs the hooks twice; only the outermost call counts. A closure
    is wrapped, because gradients are there only once it has run.

    Args:
        optimizer: whose steps are followed; earlier hooks of this kind on it are removed.
        stepping: the calls that the hooks make.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, stepping: Stepping) -> None:
        self._stepping, self._depth = stepping, 0
        if (earlier := _ATTACHED.get(optimizer)) is not None and (hooks := earlier()) is not None:
            hooks.remove()
        _ATTACHED[optimizer] = weakref.ref(self)
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            optimizer.register_load_state_dict_post_hook(lambda _: stepping.loaded()),
        ]

    def remove(self) -> None:
        """Take the hooks off the optimiser."""
        for handle in self._handles:
            handle.remove()

    def reset(self) -> None:
        """Forget a step that was begun and not finished, because an error ended it."""
        self._depth = 0

    def _before_step(self, _: Any, args: Any, kwargs: Any) -> Any:
        if self._depth:
            self._depth += 1
            return None
        self._stepping.begin()
        self._depth = 1
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._prepare(False)
            return None
        return (args[0],), {**kwargs, "closure": self._preparing(closure)}

    def _preparing(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Make a closure after which gradients are as they would be before a step without one."""

        def run() -> Any:
            try:
                loss = closure()
            except BaseException:
                self.reset()
                raise
            self._prepare(True)
            return loss

        return run

    def _prepare(self, anew: bool) -> None:
        try:
            self._stepping.prepare(anew)
        except BaseException:
            self.reset()
            raise

    def _after_step(self, *_: Any) -> None:
        self._depth -= 1
        if self._depth <= 0:
            self._stepping.finish()
