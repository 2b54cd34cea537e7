"""What a training step of the masked model costs in Keras, against the same dense network written by hand.

Both are the multi-head network of NeuroTrails (M = 3); *dense by hand* is plain Keras, as somebody would
write it without this library, with the same optimiser. *Masked* is compiled from a spec (S = 0.8, gradient
growth) and trained with ``nt_keras.sparse`` and ``nt_keras.TopologyUpdate`` at ΔT = 100. Both run ``fit``
in turn, in one process: ten steps of a Wide-ResNet, fifty of a perceptron, whose steps are short beside the
beginning of ``fit``. One of ten such runs, or of two, holds an update, and they are averaged so; the first
update, in which an engine compiles, is not counted. Run as
``KERAS_BACKEND=jax python benchmarks/keras_train_step.py --quick``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from _common import machine, print_table, write_json
from keras import layers

import nt_keras
import nt_models
from nt_core import BlockGraph, Dynamic, EnsembleSpec, MultiHead

INTERVAL, HEADS = 100, 3
PACKAGES = {"tensorflow": "tensorflow-cpu", "jax": "jax", "torch": "torch"}
Network = tuple[Callable[[], keras.Model], BlockGraph, int, int, int]
"""Makes the dense one by hand; its graph; its split; the batch size; the steps of one fit."""


def residual(x: Any, channels: int, stride: int) -> Any:
    """Write a pre-activation block of a Wide-ResNet."""
    conv = {"padding": "same", "use_bias": False}
    h = layers.ReLU()(layers.BatchNormalization()(x))
    same = x.shape[-1] == channels and stride == 1
    skip = x if same else layers.Conv2D(channels, 1, stride, **conv)(h)
    h = layers.Conv2D(channels, 3, stride, **conv)(h)
    h = layers.ReLU()(layers.BatchNormalization()(h))
    return layers.Add()([layers.Conv2D(channels, 3, 1, **conv)(h), skip])


def wide_resnet(depth: int, width: int, split: int) -> keras.Model:
    """Cut a Wide-ResNet after ``split`` blocks into a backbone and ``HEADS`` heads."""
    plan = [
        (16 * width * 2**stage, 2 if stage and not i else 1)
        for stage in range(3)
        for i in range((depth - 4) // 6)
    ]
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(16, 3, padding="same", use_bias=False)(inputs)
    for channels, stride in plan[:split]:
        x = residual(x, channels, stride)
    outputs = []
    for _ in range(HEADS):
        h = x
        for channels, stride in plan[split:]:
            h = residual(h, channels, stride)
        h = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.BatchNormalization()(h)))
        outputs.append(layers.Dense(10)(h))
    return keras.Model(inputs, keras.ops.stack(outputs, axis=1))


def perceptron(size: int) -> keras.Model:
    """Write a perceptron with ``HEADS`` heads from the second layer on: little work for each weight."""
    inputs = keras.Input((size,))
    shared = layers.Dense(size, "relu")(inputs)
    outputs = [layers.Dense(10)(layers.Dense(size, "relu")(shared)) for _ in range(HEADS)]
    return keras.Model(inputs, keras.ops.stack(outputs, axis=1))


OPTIMIZERS: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
    "SGD momentum": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
    "Adam": lambda: keras.optimizers.Adam(1e-3),
}


def hand_written_loss(y_true: Any, y_pred: Any) -> Any:
    """Average the heads' cross-entropies. (B, 1), (B, M, classes) → (B,)."""
    repeated = keras.ops.repeat(keras.ops.reshape(y_true, (-1, 1)), HEADS, axis=1)
    loss = keras.losses.sparse_categorical_crossentropy(repeated, y_pred, from_logits=True)
    return keras.ops.mean(loss, axis=1)


def measure(
    network: Network, make: Callable[[], keras.optimizers.Optimizer], rounds: int, jit: Any
) -> dict[str, float]:
    """Time both, a fit each in turn."""
    by_hand, graph, split, batch, steps = network
    spec = EnsembleSpec(
        graph=graph,
        structure=MultiHead(split=split, heads=HEADS),
        topology=Dynamic(sparsity=0.8, interval=INTERVAL),
    )
    dense, masked = by_hand(), nt_keras.compile(spec)
    dense.compile(optimizer=make(), loss=hand_written_loss, jit_compile=jit)
    masked.compile(optimizer=nt_keras.sparse(make(), masked), loss=nt_keras.ensemble_loss(), jit_compile=jit)
    rng = np.random.default_rng(0)
    updates: list[Any] = []
    callback = nt_keras.TopologyUpdate(10**6, report=updates.append)

    def spent(model: keras.Model, callbacks: list[keras.callbacks.Callback]) -> float:
        # New data each time: a network that has learnt its batch computes with denormal numbers, slowly.
        x = rng.standard_normal((steps * batch, *dense.input_shape[1:]), dtype=np.float32)
        y = rng.integers(0, 10, steps * batch)
        start = time.perf_counter()
        model.fit(x, y, batch_size=batch, verbose=0, callbacks=callbacks)
        return (time.perf_counter() - start) / steps

    times: dict[str, list[float]] = {"dense": [], "plain": [], "updating": []}
    for number in range(rounds + 2):
        order = ("dense", "masked") if number % 2 else ("masked", "dense")
        for which in order:
            before = len(updates)
            took = spent(dense, []) if which == "dense" else spent(masked, [callback])
            name = which if which == "dense" else "updating" if len(updates) > before else "plain"
            if number >= 2 and (name != "updating" or before):  # an engine compiles in the first update
                times[name].append(took)
    median = {name: statistics.median(values) for name, values in times.items()}
    every = INTERVAL // steps
    amortised = ((every - 1) * median["plain"] + median["updating"]) / every
    return {
        "dense_seconds": median["dense"],
        "masked_seconds": median["plain"],
        "update_seconds": (median["updating"] - median["plain"]) * steps,
        "ratio": median["plain"] / median["dense"],
        "ratio_amortised": amortised / median["dense"],
    }


def cases(quick: bool) -> dict[str, Network]:
    """List what is measured."""

    def wide(depth: int, width: int, split: int, batch: int) -> Network:
        graph = nt_models.wide_resnet(depth=depth, width=width, classes=10)
        return lambda: wide_resnet(depth, width, split), graph, split, batch, 10

    def mlp(size: int, batch: int) -> Network:
        graph = nt_models.mlp(inputs=size, hidden=(size, size), classes=10)
        return lambda: perceptron(size), graph, 1, batch, 50

    small = {"WRN-10-2, batch 32": wide(10, 2, 1, 32), "MLP 1024, batch 128": mlp(1024, 128)}
    return small if quick else small | {"WRN-16-4, batch 64": wide(16, 4, 2, 64)}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="only the two small networks")
    parser.add_argument(
        "--rounds", type=int, default=38, help="pairs of fits for each case; one of ten holds an update"
    )
    parser.add_argument("--jit", action="store_true", help="jit_compile=True; otherwise Keras decides")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    arguments = parser.parse_args()
    if arguments.rounds < 18:
        parser.error(
            f"--rounds: expected at least 18, so that a second update is measured, found {arguments.rounds}"
        )
    engine = keras.backend.backend()
    keras.utils.set_random_seed(0)
    about = machine("keras", PACKAGES[engine], "numpy") | {
        "engine": engine,
        "jit": str(arguments.jit or "auto"),
    }
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    results = []
    for name, network in cases(arguments.quick).items():
        for optimizer, make in OPTIMIZERS.items():
            figures = measure(network, make, arguments.rounds, arguments.jit or "auto")
            results.append({"network": name, "optimizer": optimizer, **figures})
            print(f"{name}, {optimizer}: {figures['ratio_amortised']:.3f}", flush=True)
    keys = ("dense_seconds", "masked_seconds", "update_seconds")
    print_table(
        ["network", "optimizer", "dense ms", "masked ms", "an update ms", "ratio", "ratio, ΔT = 100"],
        [
            [
                str(r["network"]),
                str(r["optimizer"]),
                *(f"{r[key] * 1e3:.1f}" for key in keys),
                *(f"{r[key]:.3f}" for key in ("ratio", "ratio_amortised")),
            ]
            for r in results
        ],
    )
    if arguments.json:
        write_json(arguments.json, "keras_train_step", about, results)


if __name__ == "__main__":
    main()
