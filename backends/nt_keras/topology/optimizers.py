"""The optimisers of :class:`nt_core.training.Training`: the same arithmetic in every backend.

Keras' own optimisers differ: their momentum is scaled by the learning rate of the step that made it, weight
decay is always decoupled, and Adam's eps is added before the bias correction. With the optimisers of this
module, a recipe gives the same steps in Keras and in PyTorch. With Keras' own, steps differ as soon as the
learning rate changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from nt_core.training import Phase, Timeline, Training
from nt_core.training import recipe as recipes
from nt_keras.network.layers import register


@register
class RecipeRate(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """A recipe's learning rate at each optimiser step.

    Args:
        lr: of the optimiser.
        schedule: a :class:`nt_core.training.LearningRate`, or its fields.
        total_steps: of the whole training.
        accumulation: number of calls to the optimiser for one step.
        phases: of the training, each a :class:`nt_core.training.Phase` or its fields; none: a single phase.
    """

    def __init__(
        self,
        lr: float,
        schedule: recipes.LearningRate | dict[str, Any],
        total_steps: int,
        accumulation: int = 1,
        phases: Sequence[Phase | dict[str, Any]] = (),
    ) -> None:
        self.lr, self.total_steps, self.accumulation = lr, total_steps, accumulation
        self.schedule = recipes.LearningRate(**schedule) if isinstance(schedule, dict) else schedule
        self.timeline = Timeline(phases=tuple(phases) or (Phase(steps=total_steps),))
        factors = [lr * self.timeline.factor(self.schedule, step) for step in range(total_steps)]
        self._rates = np.array(factors, dtype=np.float32)

    def __call__(self, iterations: Any) -> Any:
        """Return the rate; ``iterations`` are counted from 0."""
        step = ops.minimum(iterations // self.accumulation, self.total_steps - 1)
        return ops.take(ops.convert_to_tensor(self._rates), step)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of ``from_config``."""
        return {
            "lr": self.lr,
            "schedule": self.schedule.model_dump(mode="json"),
            "total_steps": self.total_steps,
            "accumulation": self.accumulation,
            "phases": self.timeline.model_dump(mode="json")["phases"],
        }


@register
class SGD(keras.optimizers.SGD):  # type: ignore[misc]
    """Stochastic gradient descent as in PyTorch: m ← μ·m + g + λ·w; w ← w − lr·m.

    Args:
        l2: λ, added to the gradient.
    """

    def __init__(self, *args: Any, l2: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.l2 = l2

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Take one step for one variable."""
        index = self._get_variable_index(variable)
        gradient = _decayed(gradient, variable, self.l2, self._trainable_variables[index])
        if self.momentum:
            momentum = self.momentums[index]
            self.assign(momentum, self.momentum * momentum + gradient)
            gradient = gradient + self.momentum * momentum if self.nesterov else momentum
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * gradient)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of ``from_config``."""
        return {**super().get_config(), "l2": self.l2}


@register
class Adam(keras.optimizers.Adam):  # type: ignore[misc]
    """Adam as in PyTorch: eps is added to the corrected root of the second moment.

    Args:
        l2: λ, added to the gradient (``weight_decay`` is Keras' decoupled decay).
    """

    def __init__(self, *args: Any, l2: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.l2 = l2

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Take one step for one variable."""
        index = self._get_variable_index(variable)
        gradient = _decayed(gradient, variable, self.l2, self._trainable_variables[index])
        first, second = self._momentums[index], self._velocities[index]
        step = ops.cast(self.iterations + 1, variable.dtype)
        self.assign_add(first, (gradient - first) * (1 - self.beta_1))
        self.assign_add(second, (ops.square(gradient) - second) * (1 - self.beta_2))
        corrected = ops.sqrt(second) / ops.sqrt(1 - ops.power(self.beta_2, step))
        rate = ops.cast(learning_rate, variable.dtype) / (1 - ops.power(self.beta_1, step))
        self.assign_sub(variable, rate * first / (corrected + self.epsilon))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of ``from_config``."""
        return {**super().get_config(), "l2": self.l2}


def make_optimizer(
    training: Training, total_steps: int, phases: Sequence[Phase] = ()
) -> keras.optimizers.Optimizer:
    """Make the optimiser of a recipe, whose training may have phases.

    Example:
        >>> make_optimizer(Training(), total_steps=100).momentum
        0.9
    """
    recipe = training.optimizer
    common: dict[str, Any] = {
        "learning_rate": RecipeRate(
            recipe.lr, training.learning_rate, total_steps, training.accumulation, phases
        ),
        "global_clipnorm": training.clip_norm,
        "gradient_accumulation_steps": training.accumulation if training.accumulation > 1 else None,
    }
    match recipe:
        case recipes.SGD(momentum=momentum, nesterov=nesterov, weight_decay=decay):
            return SGD(momentum=momentum, nesterov=nesterov, l2=decay, **common)
        case recipes.Adam(betas=betas, eps=eps, weight_decay=decay):
            return Adam(beta_1=betas[0], beta_2=betas[1], epsilon=eps, l2=decay, **common)
        case recipes.AdamW(betas=betas, eps=eps, weight_decay=decay):
            return Adam(beta_1=betas[0], beta_2=betas[1], epsilon=eps, weight_decay=decay, **common)


def _decayed(gradient: Any, variable: Any, l2: float, known: keras.Variable) -> Any:
    """Add weight decay, unless the variable is undecayed; TensorFlow passes a variable of its own."""
    gradient = ops.cast(gradient, variable.dtype)
    return gradient + l2 * variable if l2 and getattr(known, "decayed", True) else gradient


OURS: Sequence[type[keras.optimizers.Optimizer]] = (SGD, Adam)
"""Both leave a weight and its variables at 0 if weight, variables and gradient are 0."""
