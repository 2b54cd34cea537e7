"""Hooks around the steps of any optimiser, however its calls nest, and whatever ends them."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
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
        compute: comes before a closure computes gradients anew.
        prepare: readies the gradients for the optimiser.
        finish: follows the changes that the optimiser made.
        abandon: follows a step that an error ended; it may be called when no step was begun.
        loaded: follows a state that the optimiser has loaded.
    """

    begin: Callable[[], None]
    compute: Callable[[], None]
    prepare: Callable[[], None]
    finish: Callable[[], None]
    abandon: Callable[[], None]
    loaded: Callable[[], None]


class StepHooks:
    """PyTorch's own hooks on optimisers that step together, made into one sequence of calls for each step.

    An optimiser inside another, and a subclass that calls its base's ``step``, run the hooks more than once;
    only the outermost call counts. A closure is wrapped, because gradients are there only once it has run.

    Args:
        optimizers: whose steps are followed; earlier hooks of this kind on them are removed.
        stepping: the calls that the hooks make.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], stepping: Stepping) -> None:
        self._stepping, self._depth = stepping, 0
        self._outermost: FrameType | None = None
        self._handles = []
        for optimizer in optimizers:
            if not hasattr(optimizer, "_optimizer_load_state_dict_post_hooks"):
                continue  # a wrapper without its base's __init__, whose steps are the inner one's
            if (earlier := _ATTACHED.get(optimizer)) is not None and (hooks := earlier()) is not None:
                hooks.remove()
            _ATTACHED[optimizer] = weakref.ref(self)
            self._handles += [
                optimizer.register_step_pre_hook(self._before_step),
                optimizer.register_step_post_hook(self._after_step),
                optimizer.register_load_state_dict_post_hook(lambda _: stepping.loaded()),
            ]

    def remove(self) -> None:
        """Take the hooks off the optimisers."""
        for handle in self._handles:
            handle.remove()

    def reset(self) -> None:
        """Forget a step that was begun and not finished, because an error ended it."""
        if self._depth:
            self._depth, self._outermost = 0, None
            self._stepping.abandon()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before_step(self, _: Any, args: Any, kwargs: Any) -> Any:
        caller = _caller()
        if self._depth and not _is_running(self._outermost, caller):
            self.reset()
        if self._depth:
            self._depth += 1
            return None
        self._stepping.begin()
        self._depth, self._outermost = 1, caller
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            self._prepare()
            return None
        wrapped = self._preparing(closure)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": wrapped}
        return (args[0], wrapped, *args[2:]), kwargs

    def _preparing(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Make a closure after which gradients are as they would be before a step without one."""

        def run() -> Any:
            try:
                self._stepping.compute()
                loss = closure()
            except BaseException:
                self.reset()
                raise
            self._prepare()
            return loss

        return run

    def _prepare(self) -> None:
        try:
            self._stepping.prepare()
        except BaseException:
            self.reset()
            raise

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _after_step(self, *_: Any) -> None:
        self._depth -= 1
        if self._depth <= 0:
            self._depth, self._outermost = 0, None
            self._stepping.finish()


def _caller() -> FrameType:
    """Return the frame of the optimiser's step, which called the hook, perhaps through torch.compile."""
    frame = sys._getframe(2)
    while frame.f_globals.get("__name__", "").startswith("torch._dynamo") and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _is_running(outermost: FrameType | None, frame: FrameType | None) -> bool:
    """Return whether a step is still running, of which an error may have ended the one that is remembered."""
    while frame is not None:
        if frame is outermost:
            return True
        frame = frame.f_back
    return False
