"""Operations that differ between Keras' engines: TensorFlow, JAX and PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import keras
import numpy as np
from numpy.typing import NDArray

ENGINE: str = keras.backend.backend()
"""Name of the engine, fixed when Keras is first imported."""

Action = Callable[..., None]
"""Function that assigns to variables."""
Method = TypeVar("Method", bound=Callable[..., Any])


def to_numpy(variable: Any) -> NDArray[Any]:
    """Return a variable's value; bfloat16 becomes float32."""
    value = variable.value if isinstance(variable, keras.Variable) else variable
    array = np.asarray(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(value)))
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def replicas(variable: Any) -> list[NDArray[Any]]:
    """Return a variable's value on each replica of a distribution strategy; one value without a strategy."""
    values = getattr(variable.value, "values", None)
    if ENGINE == "tensorflow" and isinstance(values, tuple):
        return [np.asarray(value) for value in values]
    return [to_numpy(variable)]


def strategy_of(variable: Any) -> Any:
    """Return the distribution strategy in whose scope a variable was made; None: no strategy."""
    return getattr(variable.value, "distribute_strategy", None) if ENGINE == "tensorflow" else None


def scope_of(variable: Any) -> AbstractContextManager[Any]:
    """Make a context in which variables beside this one are made or changed."""
    strategy = strategy_of(variable)
    return nullcontext() if strategy is None else strategy.scope()


def outside_graphs() -> AbstractContextManager[Any]:
    """Make a context in which code is executed once and at once, even while TensorFlow traces a function."""
    if ENGINE != "tensorflow":
        return nullcontext()
    import tensorflow as tf

    context: AbstractContextManager[Any] = tf.init_scope()
    return context


def as_written(method: Method) -> Method:
    """Keep TensorFlow from rewriting a method while it traces a user's function."""
    if ENGINE != "tensorflow":
        return method
    import tensorflow as tf

    unchanged: Method = tf.autograph.experimental.do_not_convert(method)
    return unchanged


def sync(model: keras.Model) -> None:
    """Update a model's variables, because JAX keeps their values in the training loop."""
    if ENGINE == "jax":
        model.jax_state_sync()


def add_up(tensors: Sequence[Any]) -> Sequence[Any]:
    """Sum each tensor over the replicas of a distribution strategy."""
    if ENGINE != "tensorflow":
        return tensors
    import tensorflow as tf

    if not tensors or tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return tensors
    replica = tf.distribute.get_replica_context()
    sums: Sequence[Any] = replica.all_reduce(tf.distribute.ReduceOp.SUM, list(tensors))
    return sums


def with_dense_gradient(tensor: Any) -> Any:
    """Return a tensor whose gradient is one array, not TensorFlow's slices by row.

    Keras' optimisers square slices of a row that was read several times one by one, instead of their sum.
    """
    if ENGINE != "tensorflow":
        return tensor
    import tensorflow as tf

    same = tf.custom_gradient(lambda x: (tf.identity(x), tf.convert_to_tensor))
    return same(tf.convert_to_tensor(tensor))


def assign(change: Callable[..., Any], variables: Sequence[Any], arguments: Sequence[Any]) -> None:
    """Set variables to ``change(value, argument)``, on every replica; arguments are tensors or variables."""
    given = [argument.value if isinstance(argument, keras.Variable) else argument for argument in arguments]
    if ENGINE != "tensorflow":
        for variable, argument in zip(variables, given, strict=True):
            variable.assign(change(variable.value, argument))
        return
    import tensorflow as tf

    def set_one(variable: Any, argument: Any) -> None:
        variable.assign(change(variable, argument))

    def set_all(strategy: Any, given: Sequence[Any]) -> None:
        for variable, argument in zip(variables, given, strict=True):
            strategy.extended.update(variable.value, set_one, args=(argument,), group=False)

    if tf.distribute.in_cross_replica_context():
        set_all(tf.distribute.get_strategy(), given)
    else:
        tf.__internal__.distribute.interim.maybe_merge_call(set_all, tf.distribute.get_strategy(), given)


def cond(flag: Any, yes: Action, no: Action, arguments: Sequence[Any], variables: Sequence[Any]) -> None:
    """Run ``yes(*arguments)`` if a flag holds, else ``no(*arguments)``; they assign to ``variables``.

    The other function costs no time. Graphs contain both functions, so nothing is traced again.
    """
    if ENGINE == "tensorflow":
        _cond_in_tensorflow(flag, yes, no, arguments)
    elif ENGINE == "jax" and _is_traced(flag):
        _cond_in_jax(flag, yes, no, arguments, variables)
    else:
        (yes if flag else no)(*arguments)


def nothing(*arguments: Any) -> None:
    """Do nothing, in :func:`cond`."""


def _cond_in_tensorflow(flag: Any, yes: Action, no: Action, arguments: Sequence[Any]) -> None:
    import tensorflow as tf

    if tf.__internal__.distribute.strategy_supports_no_merge_call():
        # Reductions need tensors of one graph, so tensors from outside become the branch's own.
        def within(action: Action) -> None:
            action(*(None if each is None else tf.identity(each) for each in arguments))

        tf.cond(flag, lambda: within(yes), lambda: within(no))
        return

    # A condition inside a replica may not contain collective operations.
    def across(strategy: Any, flag: Any, *arguments: Any) -> None:
        def on_each(action: Action) -> None:
            strategy.extended.call_for_each_replica(action, args=arguments)

        same = strategy.experimental_local_results(flag)[0]
        tf.cond(same, lambda: on_each(yes), lambda: on_each(no))

    tf.distribute.get_replica_context().merge_call(across, args=(flag, *arguments))


def _cond_in_jax(
    flag: Any, yes: Action, no: Action, arguments: Sequence[Any], variables: Sequence[Any]
) -> None:
    from jax import numpy as jnp
    from jax.lax import while_loop

    # A loop of one turn or none, because XLA updates a loop's state in place, but copies a condition's.
    for holds, action in ((flag, yes), (jnp.logical_not(flag), no)):
        if action is nothing:
            continue

        def turn(state: Any, action: Action = action) -> Any:
            before = [variable.value for variable in variables]
            _set(variables, state[1])
            action(*arguments)
            after = [variable.value for variable in variables]
            _set(variables, before)
            return jnp.array(False), after

        state = (holds, [variable.value for variable in variables])
        _set(variables, while_loop(lambda state: state[0], turn, state)[1])


def _is_traced(value: Any) -> bool:
    from jax.core import Tracer

    return isinstance(value, Tracer)


def _set(variables: Sequence[Any], values: Sequence[Any]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def padded_conv(images: Any, kernel: Any, strides: tuple[int, int], pads: Any) -> Any:
    """Convolve channels-last images with any paddings, without a padded copy; JAX only."""
    from jax.lax import conv_general_dilated

    layouts = ("NHWC", "HWIO", "NHWC")
    return conv_general_dilated(images, kernel, strides, pads, dimension_numbers=layouts)


def gradients(
    model: keras.Model,
    inputs: Any,
    loss: Callable[[Any], Any],
    variables: Sequence[Any],
    *,
    again: bool = False,
) -> Sequence[Any]:
    """Return the gradient g of ``loss(model(inputs, training=True))`` with respect to trainable variables.

    Args:
        model: any model; its other variables may change meanwhile.
        inputs: a batch, in Keras' layout.
        loss: outputs → a scalar.
        variables: of the model.
        again: whether to return the product H·g of the Hessian and g instead.

    Returns:
        For each variable an array of its shape; None, or 0, where the loss does not depend on the
        variable.
    """
    compute = {"tensorflow": _gradients_in_tensorflow, "jax": _gradients_in_jax, "torch": _gradients_in_torch}
    return compute[ENGINE](model, inputs, loss, variables, again)


def _gradients_in_tensorflow(
    model: keras.Model, inputs: Any, loss: Callable[[Any], Any], variables: Sequence[Any], again: bool
) -> Sequence[Any]:
    import tensorflow as tf

    values = [variable.value for variable in variables]
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            total = loss(model(inputs, training=True))
        found: Sequence[Any] = inner.gradient(total, values)
        product = tf.add_n([tf.reduce_sum(tf.stop_gradient(g) * g) for g in found if g is not None])
    return outer.gradient(product, values) if again else found


def _gradients_in_jax(
    model: keras.Model, inputs: Any, loss: Callable[[Any], Any], variables: Sequence[Any], again: bool
) -> Sequence[Any]:
    import jax

    trainable = {id(variable): variable.value for variable in model.trainable_variables}
    others = [variable.value for variable in model.non_trainable_variables]

    def total(values: Sequence[Any]) -> Any:
        replaced = trainable | {id(v): value for v, value in zip(variables, values, strict=True)}
        return loss(model.stateless_call(list(replaced.values()), others, inputs, training=True)[0])

    start = [variable.value for variable in variables]
    gradient = jax.grad(total)
    found: Sequence[Any] = gradient(start)
    return jax.jvp(gradient, (start,), (found,))[1] if again else found


def _gradients_in_torch(
    model: keras.Model, inputs: Any, loss: Callable[[Any], Any], variables: Sequence[Any], again: bool
) -> Sequence[Any]:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    values = [variable.value for variable in variables]
    with sdpa_kernel(SDPBackend.MATH):  # no other attention kernel has a second derivative
        total = loss(model(inputs, training=True))
        found: Sequence[Any] = torch.autograd.grad(total, values, create_graph=again, allow_unused=True)
        if again:
            product = torch.stack([(g.detach() * g).sum() for g in found if g is not None]).sum()
            found = torch.autograd.grad(product, values, allow_unused=True)
    return found


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Make TensorFlow compute the same bits each time, as the other engines do on CPUs."""
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
