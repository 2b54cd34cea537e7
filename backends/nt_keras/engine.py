"""What differs between Keras' engines: TensorFlow, JAX and PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

ENGINE: str = keras.backend.backend()
"""Fixed when Keras is first imported."""

Change = Callable[..., Any]
"""(a variable's value, arguments…) → its new value."""


def to_numpy(variable: Any) -> NDArray[Any]:
    """Return a variable's value; bfloat16 becomes float32."""
    value = variable.value if isinstance(variable, keras.Variable) else variable
    array = np.asarray(keras.ops.convert_to_numpy(value))
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def replicas(variable: Any) -> list[NDArray[Any]]:
    """Return a variable's value on each replica of a distribution strategy; one where there is none."""
    values = getattr(variable.value, "values", None)
    if ENGINE == "tensorflow" and isinstance(values, tuple):
        return [np.asarray(value) for value in values]
    return [to_numpy(variable)]


def sync(model: keras.Model) -> None:
    """Bring a model's variables up to date: JAX keeps them in the training loop meanwhile."""
    if ENGINE == "jax":
        model.jax_state_sync()


def change_if(
    flag: Any,
    optimizer: keras.optimizers.Optimizer,
    change: Change,
    variables: Sequence[Any],
    gradients: Sequence[Any],
) -> None:
    """Set variables to ``change(variable, gradient)`` if a flag holds; gradients are summed over replicas.

    Where the flag does not hold it costs nothing. Graphs hold both ways, so nothing is traced again.
    """
    if ENGINE == "tensorflow":
        _change_if_in_tensorflow(flag, optimizer, change, variables, gradients)
    elif ENGINE == "jax":
        import jax

        for variable, gradient in zip(variables, gradients, strict=True):
            value = variable.value
            variable.assign(jax.lax.cond(flag, change, lambda old, _: old, value, gradient))
    elif flag:
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.assign(change(variable.value, gradient))


def _change_if_in_tensorflow(
    flag: Any, optimizer: Any, change: Change, variables: Sequence[Any], gradients: Sequence[Any]
) -> None:
    import tensorflow as tf

    targets = [variable.value for variable in variables]

    def assign(variable: Any, gradient: Any) -> Any:
        return variable.assign(change(variable, gradient))

    def everywhere(strategy: Any, gradients: Any) -> None:
        def change_all() -> None:
            reduced = gradients
            context = tf.distribute.get_replica_context()
            if strategy.num_replicas_in_sync > 1 and context is not None:
                reduced = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
            elif strategy.num_replicas_in_sync > 1:
                pairs = list(zip(gradients, targets, strict=True))
                reduced = strategy.extended.batch_reduce_to(tf.distribute.ReduceOp.SUM, pairs)
            for target, gradient in zip(targets, reduced, strict=True):
                strategy.extended.update(target, assign, args=(gradient,), group=False)

        tf.cond(_local(flag, strategy), change_all, lambda: None)

    _across_replicas(optimizer, everywhere, list(gradients))


def change_all(optimizer: Any, change: Change, variables: Sequence[Any], arguments: Sequence[Any]) -> None:
    """Set variables to ``change(variable, argument)``, on every replica; arguments are variables too."""
    if ENGINE != "tensorflow":
        for variable, argument in zip(variables, arguments, strict=True):
            variable.assign(change(variable.value, argument.value))
        return

    def assign(variable: Any, argument: Any) -> Any:
        return variable.assign(change(variable, argument))

    def everywhere(strategy: Any) -> None:
        for variable, argument in zip(variables, arguments, strict=True):
            strategy.extended.update(variable.value, assign, args=(argument.value,), group=False)

    _across_replicas(optimizer, everywhere)


def either(
    flag: Any,
    optimizer: Any,
    if_true: Callable[[], None],
    if_false: Callable[..., None],
    arguments: Sequence[Any],
    variables: Sequence[Any],
) -> None:
    """Run one of two functions that assign to ``variables``; the second one takes ``arguments``."""
    if ENGINE == "tensorflow":
        import tensorflow as tf

        def everywhere(strategy: Any, *arguments: Any) -> None:
            run = strategy.extended.call_for_each_replica
            tf.cond(_local(flag, strategy), lambda: run(if_true), lambda: run(if_false, args=arguments))

        _across_replicas(optimizer, everywhere, *arguments)
    elif ENGINE == "jax":
        import jax

        def outcome(function: Callable[..., None], *arguments: Any) -> list[Any]:
            before = [variable.value for variable in variables]
            function(*arguments)
            after = [variable.value for variable in variables]
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)
            return after

        yes, no = outcome(if_true), outcome(if_false, *arguments)
        for variable, one, other in zip(variables, yes, no, strict=True):
            variable.assign(jax.lax.cond(flag, lambda a, _: a, lambda _, b: b, one, other))
    elif flag:
        if_true()
    else:
        if_false(*arguments)


def _across_replicas(optimizer: Any, function: Callable[..., None], *arguments: Any) -> None:
    """Call a function with the strategy, outside its replicas if there are several."""
    import tensorflow as tf

    interim = tf.__internal__.distribute.interim
    interim.maybe_merge_call(function, tf.distribute.get_strategy(), *arguments)


def _local(flag: Any, strategy: Any) -> Any:
    """Return one replica's value of a flag that all compute alike."""
    return strategy.experimental_local_results(flag)[0] if strategy.num_replicas_in_sync > 1 else flag


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Make TensorFlow compute the same bits each time; the other engines do on CPUs."""
    if ENGINE != "tensorflow" or not wanted:
        yield
        return
    from tensorflow.python.framework import config

    before = config.is_op_determinism_enabled()
    config.enable_op_determinism()
    try:
        yield
    finally:
        if not before:
            config.disable_op_determinism()
