"""The conformance suite passes where it should, and can fail: each broken backend here must be found out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import nt_models
from nt_core.graph import ops
from nt_core.graph.ops import Op
from nt_core.reference import (
    REFERENCE,
    Applied,
    Array,
    Evaluated,
    Reference,
    Values,
)
from nt_core.structure import Single
from nt_core.testing import (
    CHECKS,
    Backend,
    Case,
    NumpyBackend,
    check_dropout,
    check_forward,
    check_gradients,
    check_running_statistics,
    check_step,
    model_cases,
    op_cases,
)
from nt_core.testing.conformance import Check, Expected, assert_close, evaluated
from nt_core.testing.models import inverted_residuals
from nt_core.testing.problem import problem
from nt_core.testing.strategies import cases
from nt_models.tiny import TINY

GRAPHS = {
    "nt_mlp": nt_models.mlp(inputs=(1, 4, 3), hidden=(6, 5), classes=3),
    "nt_mlp_norm": nt_models.mlp(inputs=5, hidden=(6, 5), classes=3, norm=True),
    **{name: make() for name, make in TINY.items()},
}
OPS, MODELS = op_cases(), model_cases(GRAPHS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", [*OPS, *MODELS], ids=str)
def test_the_reference_conforms(case: Case, check: Check, dtype: Any) -> None:
    check(NumpyBackend(), case, dtype)


@given(cases())
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
def test_the_reference_conforms_on_any_network(case: Case) -> None:
    for check in CHECKS:
        check(NumpyBackend(), case, np.float64)


def test_ties_occur_and_are_exact() -> None:
    (case,) = (case for case in OPS if case.name == "max_pool2d_ties")
    single, double = (what_is_pooled(case, dtype) for dtype in (np.float32, np.float64))
    np.testing.assert_array_equal(single, double)
    assert len(np.unique(single)) < single.size / 8


def what_is_pooled(case: Case, dtype: Any) -> Array:
    seen: list[Array] = []

    def spy(op: Any, inputs: Any, weights: Any, training: bool) -> Applied:
        seen.append(inputs[0])
        return REFERENCE[ops.MaxPool2d](op, inputs, weights, training)

    check_forward(wrong(ops.MaxPool2d, spy), case, dtype)
    return seen[0]


# Broken backends.


def wrong(kind: type[Op], reference: Reference) -> NumpyBackend:
    return NumpyBackend({**REFERENCE, kind: reference})


def misread(kind: type[Op], change: Callable[[Any], Mapping[str, Any]]) -> NumpyBackend:
    """A backend that reads some fields of an op wrongly."""
    return wrong(kind, lambda op, *rest: REFERENCE[kind](op.replace(**change(op)), *rest))


def only_first_reader(op: Any, inputs: Any, weights: Any, training: bool) -> Applied:
    y, pullback, _ = REFERENCE[ops.Add](op, inputs, weights, training)
    return Applied(y, lambda dy: ((pullback(dy)[0][0], *[None] * (len(inputs) - 1)), {}))


def last_of_ties(op: Any, inputs: Any, weights: Any, training: bool) -> Applied:
    """Max pooling of the image turned by 180°: equal but for ties."""
    turned = op.replace(padding=tuple((after, before) for before, after in op.padding))
    (x,) = inputs
    rows, columns = op.output_shape(x.shape[1:])[1:]
    reached = [
        (n - 1) * s + k - sum(p)
        for n, s, k, p in zip((rows, columns), op.stride, op.kernel, op.padding, strict=True)
    ]
    cut = x[:, :, : reached[0], : reached[1]]
    y, pullback, _ = REFERENCE[ops.MaxPool2d](turned, (cut[:, :, ::-1, ::-1],), weights, training)

    def back(dy: Array) -> Any:
        dx = np.zeros_like(x)
        dx[:, :, : reached[0], : reached[1]] = pullback(dy[:, :, ::-1, ::-1])[0][0][:, :, ::-1, ::-1]
        return (dx,), {}

    return Applied(y[:, :, ::-1, ::-1], back)


def zero_padded_max_pool(op: Any, inputs: Any, weights: Any, training: bool) -> Applied:
    padded = np.pad(inputs[0], ((0, 0), (0, 0), *op.padding))
    plain = op.replace(padding=((0, 0), (0, 0)))
    y, pullback, _ = REFERENCE[ops.MaxPool2d](plain, (padded,), weights, training)
    (top, bottom), (left, right) = op.padding
    height, width = padded.shape[2:]
    return Applied(
        y, lambda dy: ((pullback(dy)[0][0][:, :, top : height - bottom, left : width - right],), {})
    )


def channels_last_flatten(op: Any, inputs: Any, weights: Any, training: bool) -> Applied:
    (x,) = inputs
    if x.ndim != 4:
        return REFERENCE[ops.Flatten](op, inputs, weights, training)
    last = np.moveaxis(x, 1, -1)
    return Applied(last.reshape(len(x), -1), lambda dy: ((np.moveaxis(dy.reshape(last.shape), -1, 1),), {}))


def tanh_gelu(op: Any, inputs: Any, weights: Any, training: bool) -> Applied:
    y, pullback, running = REFERENCE[ops.Activation](op, inputs, weights, training)
    if op.function == "gelu":
        (x,) = inputs
        y = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi).astype(x.dtype) * (x + 0.044715 * x**3)))
    return Applied(y, pullback, running)


def relu_slope_at_zero(op: Any, inputs: Any, weights: Any, training: bool) -> Applied:
    y, pullback, _ = REFERENCE[ops.Activation](op, inputs, weights, training)
    if op.function != "relu":
        return Applied(y, pullback)
    return Applied(y, lambda dy: ((dy * (inputs[0] >= 0),), {}))


def biased_running_variance(op: Any, inputs: Any, weights: Any, training: bool) -> Applied:
    y, pullback, running = REFERENCE[ops.BatchNorm](op, inputs, weights, training)
    if running:
        axes = (0, *range(2, inputs[0].ndim))
        batch = inputs[0].var(axes)
        running = {**running, "running_var": (1 - op.momentum) * weights["running_var"] + op.momentum * batch}
    return Applied(y, pullback, running)


def never_evaluating(op: Any, inputs: Any, weights: Any, training: bool) -> Applied:
    applied = REFERENCE[ops.BatchNorm](op, inputs, weights, True)
    return applied if training else applied._replace(running={})


def forgetful_embedding(op: Any, inputs: Any, weights: Any, training: bool) -> Applied:
    """Writes the gradient of a word's last occurrence instead of the sum."""
    y, _, _ = REFERENCE[ops.Embedding](op, inputs, weights, training)

    def pullback(dy: Array) -> Any:
        gradient = np.zeros(weights["weight"].shape, dy.dtype)
        gradient[inputs[0]] = dy
        return (None,), {"weight": gradient}

    return Applied(y, pullback)


def by_columns(op: Any, inputs: Any, weights: Any, training: bool) -> Applied:
    (x,) = inputs
    turned = x.swapaxes(2, 3)
    return REFERENCE[ops.ToSequence](op, (turned,), weights, training)._replace(pullback=no_pullback)


def token_last(op: Any, inputs: Any, weights: Any, training: bool) -> Applied:
    y = REFERENCE[ops.ClassToken](op, inputs, weights, training).output
    return Applied(np.roll(y, -1, axis=1), no_pullback)


def taught_by_one_example(op: Any, inputs: Any, weights: Any, training: bool) -> Applied:
    """Give the op's own weight the gradient of the first example alone."""
    y, pullback, _ = REFERENCE[type(op)](op, inputs, weights, training)
    return Applied(y, lambda dy: (pullback(dy)[0], pullback(dy * (np.arange(len(dy)) < 1)[:, None, None])[1]))


def interleaved_groups(op: Any, inputs: Any, weights: Any, training: bool) -> Applied:
    if op.groups == 1 or op.groups == op.in_channels:
        return REFERENCE[ops.Conv2d](op, inputs, weights, training)
    order = np.arange(op.in_channels).reshape(op.groups, -1).T.ravel()
    y, pullback, _ = REFERENCE[ops.Conv2d](op, (inputs[0][:, order],), weights, training)

    def back(dy: Array) -> Any:
        (dx,), gradients = pullback(dy)
        assert dx is not None
        return (dx[:, np.argsort(order)],), gradients

    return Applied(y, back)


def swapped_padding(op: ops.Conv2d) -> Mapping[str, Any]:
    return {"padding": tuple((after, before) for before, after in op.padding)}


def tiled_heads(op: Any, inputs: Any, weights: Any, training: bool) -> Applied:
    """Query head h reads key/value head h mod kv_heads, which differs where 1 < kv_heads < heads."""
    order = np.arange(op.heads).reshape(-1, op.kv_heads).T.ravel()
    batch, length, _ = inputs[0].shape
    q = inputs[0].reshape(batch, length, op.heads, -1)[:, :, order].reshape(inputs[0].shape)
    y = REFERENCE[ops.Attention](op, (q, *inputs[1:]), weights, training).output
    y = y.reshape(batch, length, op.heads, -1)[:, :, np.argsort(order)].reshape(inputs[0].shape)
    return Applied(y, no_pullback)


def interleaved_rotary(op: Any, inputs: Any, weights: Any, training: bool) -> Applied:
    """Pairs component 2i with 2i + 1: the half-split layout of components in another order."""
    q, k, v = inputs
    size = q.shape[2] // op.heads
    order = np.arange(size).reshape(-1, 2).T.ravel()
    q, k = (x.reshape(*x.shape[:2], -1, size)[..., order].reshape(x.shape) for x in (q, k))
    return REFERENCE[ops.Attention](op, (q, k, v), weights, training)._replace(pullback=no_pullback)


def no_pullback(dy: Array) -> Any:
    raise NotImplementedError


class HeadsReversed(NumpyBackend):
    def forward(self, case: Case, values: Values, x: Array, *, training: bool) -> Array:
        return super().forward(case, values, x, training=training)[::-1]


class OneHeadTeachesTheBackbone(NumpyBackend):
    def evaluate(self, case: Case, values: Values, x: Array, upstream: Array) -> Evaluated:
        whole = super().evaluate(case, values, x, upstream)
        others_silent = np.concatenate([upstream[:1], 0 * upstream[1:]])
        alone = super().evaluate(case, values, x, others_silent)
        below = {n: g for n, g in alone.gradients.items() if n.startswith("backbone/")}
        return whole._replace(gradients=whole.gradients | below)


class MasksNotApplied(NumpyBackend):
    def step(
        self, case: Case, values: Values, masks: Any, x: Array, upstream: Array, *, learning_rate: float
    ) -> Any:
        return super().step(case, values, {}, x, upstream, learning_rate=learning_rate)


class MaskedBiases(NumpyBackend):
    def step(
        self, case: Case, values: Values, masks: Any, x: Array, upstream: Array, *, learning_rate: float
    ) -> Any:
        after = dict(super().step(case, values, masks, x, upstream, learning_rate=learning_rate))
        return {n: v * 0 if n.endswith("linear1.bias") else v for n, v in after.items()}


class TinyInactive(NumpyBackend):
    """Leaves inactive elements so small that no tolerance sees them."""

    def step(
        self, case: Case, values: Values, masks: Any, x: Array, upstream: Array, *, learning_rate: float
    ) -> Any:
        after = dict(super().step(case, values, masks, x, upstream, learning_rate=learning_rate))
        return {n: np.where(v == 0, v.dtype.type(1e-30), v) for n, v in after.items()}


class RunningForgotten(NumpyBackend):
    def running(self, case: Case, values: Values, x: Array) -> Mapping[str, Array]:
        return {}


class OtherDtype(NumpyBackend):
    def forward(self, case: Case, values: Values, x: Array, *, training: bool) -> Array:
        return super().forward(case, values, x, training=training).astype(np.float16)


class GradientMissing(NumpyBackend):
    def gradients(self, case: Case, values: Values, x: Array, upstream: Array) -> Mapping[str, Array]:
        return dict(list(super().gradients(case, values, x, upstream).items())[1:])


BROKEN: Mapping[str, tuple[Backend, Check]] = {
    "padding_swapped": (misread(ops.Conv2d, swapped_padding), check_forward),
    "groups_interleaved": (wrong(ops.Conv2d, interleaved_groups), check_forward),
    "max_pool_pads_zero": (wrong(ops.MaxPool2d, zero_padded_max_pool), check_forward),
    "max_pool_last_of_ties": (wrong(ops.MaxPool2d, last_of_ties), check_gradients),
    "relu_slope_at_zero": (wrong(ops.Activation, relu_slope_at_zero), check_gradients),
    "gelu_by_tanh": (wrong(ops.Activation, tanh_gelu), check_forward),
    "flatten_channels_last": (wrong(ops.Flatten, channels_last_flatten), check_forward),
    "shared_tensor_gradient_dropped": (wrong(ops.Add, only_first_reader), check_gradients),
    "embedding_forgets": (wrong(ops.Embedding, forgetful_embedding), check_gradients),
    "sequence_by_columns": (wrong(ops.ToSequence, by_columns), check_forward),
    "class_token_last": (wrong(ops.ClassToken, token_last), check_forward),
    "class_token_taught_by_one_example": (wrong(ops.ClassToken, taught_by_one_example), check_gradients),
    "positions_taught_by_one_example": (wrong(ops.Positions, taught_by_one_example), check_gradients),
    "first_token_taken": (misread(ops.TakeToken, lambda op: {"index": 0}), check_forward),
    "batch_norm_eps": (misread(ops.BatchNorm, lambda op: {"eps": 1e-3}), check_forward),
    "batch_norm_momentum": (
        misread(ops.BatchNorm, lambda op: {"momentum": 1 - op.momentum}),
        check_running_statistics,
    ),
    "batch_norm_biased": (wrong(ops.BatchNorm, biased_running_variance), check_running_statistics),
    "batch_norm_never_evaluating": (wrong(ops.BatchNorm, never_evaluating), check_forward),
    "layer_norm_eps": (misread(ops.LayerNorm, lambda op: {"eps": 1e-6}), check_forward),
    "rms_norm_eps": (misread(ops.RMSNorm, lambda op: {"eps": 1e-6}), check_forward),
    "attention_not_causal": (misread(ops.Attention, lambda op: {"causal": False}), check_forward),
    "attention_without_rotary": (misread(ops.Attention, lambda op: {"rotary_base": None}), check_forward),
    "attention_base": (
        misread(ops.Attention, lambda op: {"rotary_base": op.rotary_base and 500.0}),
        check_forward,
    ),
    "attention_tiled": (wrong(ops.Attention, tiled_heads), check_forward),
    "attention_interleaved": (wrong(ops.Attention, interleaved_rotary), check_forward),
    "heads_reversed": (HeadsReversed(), check_forward),
    "other_dtype": (OtherDtype(), check_forward),
    "gradient_missing": (GradientMissing(), check_gradients),
    "one_head_teaches": (OneHeadTeachesTheBackbone(), check_gradients),
    "running_forgotten": (RunningForgotten(), check_running_statistics),
    "masks_not_applied": (MasksNotApplied(), check_step),
    "biases_masked": (MaskedBiases(), check_step),
    "inactive_not_zero": (TinyInactive(), check_step),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_backend_is_found_out(name: str, dtype: Any) -> None:
    backend, check = BROKEN[name]
    assert any(fails(check, backend, case, dtype) for case in (*OPS, *MODELS))


def fails(check: Check, backend: Backend, case: Case, dtype: Any) -> bool:
    try:
        check(backend, case, dtype)
    except AssertionError:
        return True
    return False


def test_tolerances_are_relative_to_the_array_or_to_one() -> None:
    big, small = np.array([1e6, 1.0]), np.array([1e-6, 0.0])
    assert_close(big + np.array([0, 5e-5]), big, 1e-10, np.float64, "big")
    assert_close(small + 5e-11, small, 1e-10, np.float64, "small")
    with pytest.raises(AssertionError, match="big"):
        assert_close(big + np.array([0, 2e-4]), big, 1e-10, np.float64, "big")
    with pytest.raises(AssertionError, match="small"):
        assert_close(small + 2e-10, small, 1e-10, np.float64, "small")
    with pytest.raises(AssertionError, match="nan"):
        assert_close(small * np.nan, small, 1e-10, np.float64, "nan")


# Dropout.


@dataclass(frozen=True)
class Dropping(NumpyBackend):
    """A backend whose one op is dropout."""

    rate: float = 0.25
    scale: float = 0.75
    alike: bool = False
    always: bool = False

    def forward(self, case: Case, values: Values, x: Array, *, training: bool) -> Array:
        if not training and not self.always:
            return x[None]
        keep = np.random.default_rng(0).random(x.shape) >= self.rate
        keep = np.broadcast_to(keep[:1], x.shape) if self.alike else keep
        return np.where(keep, x / x.dtype.type(self.scale), 0).astype(x.dtype)[None]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dropout_conforms(dtype: Any) -> None:
    check_dropout(Dropping(), dtype)


@pytest.mark.parametrize(
    "backend",
    [Dropping(rate=0.3), Dropping(scale=1.0), Dropping(alike=True), Dropping(always=True)],
    ids=["rate", "scale", "alike", "always"],
)
def test_broken_dropout_is_found_out(backend: Dropping) -> None:
    with pytest.raises(AssertionError):
        check_dropout(backend, np.float64)


# Deep networks: tolerances follow the rounding that depth brings, and no further.

DEEP = Case(name="inverted_residuals", graph=inverted_residuals(), structure=Single(), kind="model", batch=3)


@dataclass(frozen=True)
class Scaled(NumpyBackend):
    """NumPy's results with a relative error in the logits, and in the gradient of the first weight."""

    share: float = 0.0

    def forward(self, case: Case, values: Values, x: Array, *, training: bool) -> Array:
        logits = super().forward(case, values, x, training=training)
        return logits * logits.dtype.type(1 + self.share)

    def gradients(self, case: Case, values: Values, x: Array, upstream: Array) -> Mapping[str, Array]:
        found = dict(super().gradients(case, values, x, upstream))
        first = next(iter(found))
        return found | {first: found[first] * x.dtype.type(1 + self.share)}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_deep_network_conforms_in_both_dtypes(check: Check) -> None:
    for dtype in (np.float64, np.float32):
        check(NumpyBackend(), DEEP, dtype)


@pytest.mark.parametrize("case", [MODELS[0], DEEP], ids=str)
@pytest.mark.parametrize("check", [check_forward, check_gradients])
def test_a_wrong_formula_is_found_out_at_any_depth(check: Check, case: Case) -> None:
    assert fails(check, Scaled(share=1e-5), case, np.float64)


@pytest.mark.parametrize("case", [MODELS[0], DEEP], ids=str)
def test_single_precision_finds_wrong_logits_at_any_depth(case: Case) -> None:
    assert fails(check_forward, Scaled(share=0.1), case, np.float32)


def test_the_tolerance_grows_with_depth() -> None:
    tolerances = []
    for blocks in (2, 17):
        case = replace(DEEP, graph=inverted_residuals(blocks))
        wanted = Expected(
            problem(case, np.float64), lambda of, case=case: evaluated(case, of).gradients, 0.0, np.float64
        )
        tolerances.append(wanted.tolerance(wanted.exact))
    assert tolerances[0] < tolerances[1] < 1e-6
