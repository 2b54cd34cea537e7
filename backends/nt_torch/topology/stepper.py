"""An optimiser with those inside it, which step together: its hooks, its state, gradients it must not see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from nt_torch.topology.gradients import HeldBack
from nt_torch.topology.hooks import StepHooks, Stepping
from nt_torch.topology.optimizers import family, keeps_zeros, parameters_of, will_be_skipped
from nt_torch.topology.state import OptimizerState


class Stepper:
    """One of the optimisers that a :class:`nt_torch.Topology` follows.

    Args:
        optimizer: perhaps a wrapper, or with others inside it.

    Attributes:
        optimizers: it and those inside it, the outermost first.
        stepped: whether it took a step that the topology has not seen yet.
        zeros_stay: whether its present step leaves inactive weights and their state at zero by itself.
        was_skipped: whether its last step was skipped by a GradScaler inside it.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizers = family(optimizer)
        self.stepped = self.zeros_stay = self.was_skipped = False
        self._states = tuple(OptimizerState(each) for each in self.optimizers)
        self._clean = False  # the state of inactive elements, since it was last loaded
        self._unproven: set[int] = set()
        self._held_back = HeldBack()
        self._hooks: StepHooks | None = None

    @property
    def parameters(self) -> dict[int, nn.Parameter]:
        """Its parameters, by their identity."""
        return parameters_of(self.optimizers)

    @property
    def will_be_skipped(self) -> bool:
        """Whether the step that begins will change nothing, because gradients overflowed."""
        self.was_skipped = will_be_skipped(self.optimizers)
        return self.was_skipped

    @property
    def grad_scale(self) -> Tensor | None:
        """The loss scale, which a fused optimiser removes only inside its kernel."""
        return next(
            (s for each in self.optimizers if (s := getattr(each, "grad_scale", None)) is not None), None
        )

    def attach(
        self,
        *,
        begin: Callable[[Stepper], None],
        prepare: Callable[[Stepper], None],
        finish: Callable[[Stepper], None],
        compute: Callable[[], None],
    ) -> None:
        """Hook on to the optimisers."""

        def finished() -> None:
            self._held_back.give_back()
            finish(self)

        self._hooks = StepHooks(
            self.optimizers,
            Stepping(
                begin=partial(begin, self),
                compute=compute,
                prepare=partial(prepare, self),
                finish=finished,
                abandon=self._held_back.give_back,
                loaded=self._mistrust,
            ),
        )

    def detach(self) -> None:
        """Take the hooks off."""
        if self._hooks is not None:
            self._hooks.remove()

    def reset(self) -> None:
        """Forget a step that was begun and not finished."""
        if self._hooks is not None:
            self._hooks.reset()

    def begin(self, weights: Sequence[Tensor], *, zeros: bool) -> None:
        """Begin a step.

        Args:
            weights: its masked weights.
            zeros: whether their inactive elements, and the state of these, are zero now.
        """
        self.was_skipped = False
        self.zeros_stay = zeros and self._clean and all(keeps_zeros(each) for each in self.optimizers)
        self._unproven = {id(w) for w in weights if all(state.is_empty(w) for state in self._states)}

    def hold_back(self) -> None:
        """Let the optimisers see no gradient in this step."""
        self._held_back.hold(self.parameters.values())

    def clear(self, weights: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Clear the state of inactive elements.

        Args:
            weights: name → weight and mask.
        """
        for state in self._states:
            for weight, mask in weights.values():
                if id(weight) in self._unproven:
                    state.prove(weight, mask)
                state.clear(weight, mask)
        self._unproven = set()
        self._clean = True

    def say_what_stays(self) -> None:
        """Warn once of state that is not cleared."""
        for state in self._states:
            state.say_what_stays()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hooks": None}

    def _mistrust(self) -> None:
        self._clean = False
