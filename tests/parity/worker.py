"""One backend's share of the parity tests: computes what is compared and stores it as arrays.

Keras fixes its engine when it is imported, so each engine computes in a process of its own::

    echo TASK | KERAS_BACKEND=jax python worker.py keras FOLDER

It reads tasks, one on a line. Each writes ``TASK.npz`` into the folder, and its name to standard output.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax
from sklearn.datasets import load_digits

import nt_models
from nt_core import (
    MIMO,
    BatchEnsemble,
    Dynamic,
    EnsembleSpec,
    Fission,
    GradualPruning,
    Independent,
    MultiHead,
    Random,
    Single,
    Static,
    initial_masks,
    initial_values,
)
from nt_core.checkpoint import save_checkpoint
from nt_core.masks import Moment
from nt_core.policies import Layer, Momentum
from nt_core.reference import forward, value_and_gradients
from nt_core.testing.models import MODELS
from nt_core.topology import Update, pack, seen_with, update
from nt_core.training import SGD, LearningRate, Training

Arrays = dict[str, Any]
LR, MOMENTUM, DECAY, BATCH, STEPS = 0.05, 0.9, 5e-4, 64, 20
WIDE_RESNET = nt_models.wide_resnet(depth=10, width=1, classes=10, size=8, channels=1)
PERCEPTRON = nt_models.mlp(inputs=64, hidden=(48, 32), classes=10)

STARTS = {
    "neurotrails": EnsembleSpec(
        graph=WIDE_RESNET, structure=MultiHead(split=1, heads=3), topology=Dynamic(sparsity=0.8)
    ),
    "static": EnsembleSpec(
        graph=PERCEPTRON, structure=Independent(count=2), topology=Static(sparsity=0.9, allocation="er")
    ),
    "pruning": EnsembleSpec(graph=PERCEPTRON, topology=GradualPruning(sparsity=0.9)),
    **{f"dense/{name}": EnsembleSpec(graph=make(), structure=Single()) for name, make in MODELS.items()},
}


def twenty(graph: Any) -> EnsembleSpec:
    """Three heads; updates follow steps 8 and 16 of 20."""
    topology = Dynamic(sparsity=0.8, interval=8, drop_fraction=0.3)
    return EnsembleSpec(graph=graph, structure=MultiHead(split=1, heads=3), topology=topology)


def snfs(spec: EnsembleSpec) -> EnsembleSpec:
    """Growth by the smoothed dense gradient, divided among weights by it."""
    return spec.replace(topology=spec.topology.replace(grow=Momentum(), scope="momentum"))


RUNS = {
    "wide_resnet": twenty(WIDE_RESNET),
    "perceptron": twenty(PERCEPTRON),
    "snfs": snfs(twenty(PERCEPTRON)),
    "batch_ensemble": twenty(PERCEPTRON).replace(structure=BatchEnsemble(count=2)),
    "mimo": twenty(PERCEPTRON).replace(structure=MIMO(count=2, rho=0.5)),
    "fission": EnsembleSpec(
        graph=PERCEPTRON, structure=Fission(count=2), topology=Static(sparsity=0.5, allocation="er")
    ),
}
RECIPE = Training(
    optimizer=SGD(lr=LR, momentum=MOMENTUM, weight_decay=DECAY), learning_rate=LearningRate(schedule="cosine")
)


def batches(spec: EnsembleSpec) -> Iterator[tuple[Any, Any]]:
    """Yield the digits, the same for all, as members train on them."""
    digits = load_digits()
    images = (digits.images / 8 - 1).astype(np.float32).reshape(-1, *spec.graph.input.shape)
    rng = np.random.default_rng(0)
    for number in range(STEPS):
        rows = rng.integers(0, len(images), BATCH)
        own = spec.structure.member_rows(BATCH, Random(3).at(weight="batch", step=number, purpose="rows"))
        rows = rows if own is None else rows[own]
        yield images[rows], digits.target[rows]


def start_of_numpy(spec: EnsembleSpec) -> Arrays:
    masks = dict(initial_masks(spec.topology, spec.layout, 3))
    values = dict(initial_values(spec.layout, 3))
    kept = {name: np.where(masks[name].dense(), v, 0) if name in masks else v for name, v in values.items()}
    return kept | {f"mask of {name}": mask.dense() for name, mask in masks.items()}


def start_of_torch(spec: EnsembleSpec) -> Arrays:
    import nt_torch

    return stored(nt_torch.checkpoint(nt_torch.compile(spec, seed=3)))


def start_of_keras(spec: EnsembleSpec) -> Arrays:
    import nt_keras

    return stored(nt_keras.checkpoint(nt_keras.compile(spec, seed=3)))


def stored(checkpoint: Any) -> Arrays:
    masks = {f"mask of {name}": mask.dense() for name, mask in checkpoint.masks.items()}
    return dict(checkpoint.values) | masks


def loss_of(spec: EnsembleSpec, logits: Any, labels: Any) -> tuple[float, Any]:
    """Return the loss and its gradient. (M, B, classes), and (B,) or (M·B,) class numbers."""
    log_p, temperature = log_softmax(logits, axis=-1), spec.distillation
    truth = np.eye(logits.shape[-1])[labels.reshape(-1, logits.shape[1])]
    loss, gradient = -(log_p * truth).sum(), np.exp(log_p) - truth
    if temperature is not None:
        teacher = log_softmax(logits.mean(0, keepdims=True) / temperature, axis=-1)
        students = log_softmax(logits / temperature, axis=-1)
        loss += temperature**2 * (np.exp(teacher) * (teacher - students)).sum()
        gradient = gradient + temperature * (np.exp(students) - np.exp(teacher))
    count = logits.shape[1] * (spec.members if spec.loss_reduction == "mean" else 1)
    return float(loss / count), gradient / count


def run_of_numpy(spec: EnsembleSpec, _: Path) -> Arrays:
    """The reference, in float64."""
    layout, random = spec.layout, Random(3)
    active = {name: mask.dense() for name, mask in initial_masks(spec.topology, layout, 3)}
    values = {name: value.astype(np.float64) for name, value in initial_values(layout, 3)}
    values |= {name: values[name] * flags for name, flags in active.items()}
    momentum = {p.name: 0.0 for p in layout.weights if p.weight.trainable}
    beta, smoothed = spec.topology.momentum_beta or 0.0, dict.fromkeys(active, 0.0)
    decay = {p.name: DECAY if p.weight.decayed else 0.0 for p in layout.weights}
    losses, updates = [], []
    seen = {name: pack(flags) for name, flags in active.items()}
    for number, (x, y) in enumerate(batches(spec)):
        x = x.astype(np.float64)
        loss, upstream = loss_of(spec, forward(layout, values, x, training=True), y)
        losses.append(loss)
        found = value_and_gradients(layout, values, x, upstream)
        dense = found.gradients
        values |= found.running
        smoothed = {n: beta * smoothed[n] + (1 - beta) * dense[n] for n in smoothed}
        rate = LR * RECIPE.learning_rate.at(number, STEPS)
        for name in momentum:
            kept = active.get(name, True)
            momentum[name] = MOMENTUM * momentum[name] + dense[name] * kept + decay[name] * values[name]
            values[name] = values[name] - rate * momentum[name]
        if spec.topology.due(number + 1, STEPS):
            layers = [
                Layer(
                    name=name,
                    weights=values[name].reshape(-1).astype(np.float32),
                    gradients=dense[name].reshape(-1).astype(np.float32),
                    active=flags.reshape(-1),
                    momentum=smoothed[name].reshape(-1).astype(np.float32) if beta else None,
                )
                for name, flags in active.items()
            ]
            targets = spec.topology.final_counts(layout)
            moment = Moment(number + 1, random)
            swaps = update(spec.topology, layers, moment, total_steps=STEPS, targets=targets)
            for name, swap in swaps.items():
                flat = active[name].reshape(-1).copy()
                flat[swap.pruned], flat[swap.grown] = False, True
                active[name] = flat.reshape(active[name].shape)
                values[name], momentum[name] = values[name] * active[name], momentum[name] * active[name]
            masks = {name: pack(flags) for name, flags in active.items()}
            seen = seen_with(seen, masks)
            sizes = {name: flags.size for name, flags in active.items()}
            updates.append(Update.of(number + 1, swaps, sizes, masks, seen))
    found = {"losses": np.array(losses), "updates": figures(updates)}
    return found | {f"mask of {name}": flags for name, flags in active.items()}


def figures(updates: list[Update]) -> Any:
    """Return what each update reports."""
    return np.array(
        [[u.step, u.to_event()["grown"], u.exploration_rate, u.head_overlap] for u in updates], np.float64
    )


def run_of_torch(spec: EnsembleSpec, folder: Path) -> Arrays:
    import torch

    import nt_torch

    torch.set_num_threads(1)
    model = nt_torch.compile(spec, seed=3)
    groups = nt_torch.decay_groups(model)
    optimizer = torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    topology = nt_torch.Topology(model, optimizer, total_steps=STEPS, seed=3)
    losses, updates = [], []
    for number, (x, y) in enumerate(batches(spec)):
        for group in optimizer.param_groups:
            group["lr"] = LR * RECIPE.learning_rate.at(number, STEPS)
        loss = model.loss(torch.from_numpy(x), torch.from_numpy(y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        updates.append(topology.step())
        losses.append(loss.item())
    return finished(nt_torch, model, losses, updates, folder)


def run_of_keras(spec: EnsembleSpec, folder: Path) -> Arrays:
    import nt_keras
    from nt_keras.engines.layouts import batch_to_keras
    from nt_keras.topology.optimizers import make_optimizer

    model = nt_keras.compile(spec, seed=3)
    model.compile(
        optimizer=nt_keras.sparse(make_optimizer(RECIPE, STEPS), model),
        loss=nt_keras.ensemble_loss(spec),
    )
    topology = nt_keras.Topology(model, total_steps=STEPS, seed=3)
    losses, updates = [], []
    for x, y in batches(spec):
        model.reset_metrics()
        losses.append(float(model.train_on_batch(batch_to_keras(x), y)))
        updates.append(topology.step())
    return finished(nt_keras, model, losses, updates, folder)


def finished(
    backend: Any, model: Any, losses: list[float], updates: list[Update | None], folder: Path
) -> Arrays:
    """Save the model, and return what is compared."""
    checkpoint = backend.checkpoint(model)
    save_checkpoint(folder, checkpoint)
    return {
        "losses": np.array(losses),
        "updates": figures([update for update in updates if update is not None]),
        "logits": backend.predict(model, held_out(model.spec)),
        **{f"mask of {name}": mask.dense() for name, mask in checkpoint.masks.items()},
    }


def held_out(spec: EnsembleSpec) -> Any:
    """Return inputs nothing was trained on."""
    return np.random.default_rng(1).normal(size=(40, *spec.graph.input.shape)).astype(np.float32)


def predict_of(backend: str, spec: EnsembleSpec, folder: Path) -> Arrays:
    """Predict with every checkpoint that lies beside this backend's folder."""
    found = {}
    for other in sorted(folder.parent.parent.glob(f"*/{folder.name}/config.json")):
        if backend == "torch":
            import nt_torch

            found[other.parent.parent.name] = nt_torch.predict(nt_torch.load(other.parent), held_out(spec))
        else:
            import nt_keras

            found[other.parent.parent.name] = nt_keras.predict(nt_keras.load(other.parent), held_out(spec))
    return found


def compute(backend: str, task: str, folder: Path) -> Arrays:
    """Compute one task: ``start``, or ``run``, or ``predict``."""
    if task == "start":
        start: Callable[[EnsembleSpec], Arrays] = globals()[f"start_of_{backend}"]
        return {
            f"{name}: {key}": array for name, spec in STARTS.items() for key, array in start(spec).items()
        }
    results = {}
    for name, spec in RUNS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        found = (
            globals()[f"run_of_{backend}"](spec, folder / name)
            if task == "run"
            else predict_of(backend, spec, folder / name)
        )
        results |= {f"{name}: {key}": array for key, array in found.items()}
    return results


def main() -> None:
    backend, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    for task in map(str.strip, sys.stdin):
        found = compute(backend, task, folder)
        # A slash would make folders in the archive.
        np.savez(folder / f"{task}.npz", **{key.replace("/", "|"): array for key, array in found.items()})
        print(task, file=answers, flush=True)


if __name__ == "__main__":
    main()
