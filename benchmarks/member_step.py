"""What a training step costs in which members share kernels, against the single network at as many rows.

A row is what passes through the network once: a batch of 96 is 96 rows of the single network, 32 for each of
three members of a BatchEnsemble that splits it, and 96 rows of MIMO hold 288 examples. *Independent* trains
three networks in one process and is compared with three times the single one. Steps alternate in one process.
Run as ``python benchmarks/member_step.py`` or, in Keras, ``KERAS_BACKEND=tensorflow python
benchmarks/member_step.py --backend keras``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from _common import machine, print_table, write_json

import nt_models
from nt_core import MIMO, BatchEnsemble, EnsembleSpec, Fission, Independent, Single, Static

ROWS: Final = 96
CLASSES: Final = 10
STRUCTURES: Final[Mapping[str, tuple[EnsembleSpec, int, int]]] = {
    name: (spec, examples, networks)
    for graph in [nt_models.wide_resnet(depth=10, width=2, classes=CLASSES, size=32)]
    for name, spec, examples, networks in (
        ("single", EnsembleSpec(graph=graph, structure=Single()), ROWS, 1),
        ("BatchEnsemble, split", EnsembleSpec(graph=graph, structure=BatchEnsemble(count=3)), ROWS, 1),
        (
            "BatchEnsemble, split, own norms",
            EnsembleSpec(graph=graph, structure=BatchEnsemble(count=3, norms="per_member")),
            ROWS,
            1,
        ),
        (
            "BatchEnsemble, tile",
            EnsembleSpec(graph=graph, structure=BatchEnsemble(count=3, batch="tile")),
            ROWS // 3,
            1,
        ),
        ("MIMO", EnsembleSpec(graph=graph, structure=MIMO(count=3)), 3 * ROWS, 1),
        ("Independent, 3", EnsembleSpec(graph=graph, structure=Independent(count=3)), ROWS, 3),
        (
            "Fission, 3 exits",
            EnsembleSpec(graph=graph, structure=Fission(count=3), topology=Static(sparsity=0.5)),
            ROWS,
            1,
        ),
    )
}
"""Name → spec, examples of a batch, and how many single networks it is compared with."""

Step = Callable[[], None]


def step_of_torch(spec: EnsembleSpec, examples: int) -> Step:
    """Return a training step in PyTorch."""
    import torch

    import nt_torch
    from nt_torch.network.model import fast_layout

    torch.set_num_threads(1)
    model = fast_layout(nt_torch.compile(spec))
    optimizer = torch.optim.SGD(nt_torch.decay_groups(model), lr=0.01, momentum=0.9)
    topology = nt_torch.Topology(model, optimizer, total_steps=10**6)

    def step() -> None:
        x = torch.randn(examples, 3, 32, 32).to(memory_format=torch.channels_last)
        y = torch.randint(0, CLASSES, (examples,))
        loss = model.loss(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        topology.step()

    return step


def step_of_keras(spec: EnsembleSpec, examples: int) -> Step:
    """Return a training step in Keras, on the engine that is chosen."""
    import keras

    import nt_keras

    model = nt_keras.compile(spec)
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    model.compile(
        optimizer=nt_keras.sparse(optimizer, model) if model.masked else optimizer,
        loss=nt_keras.ensemble_loss(spec),
    )
    rng = np.random.default_rng(0)

    def step() -> None:
        x = rng.standard_normal((examples, 32, 32, 3), dtype=np.float32)
        model.train_on_batch(x, rng.integers(0, CLASSES, examples))

    return step


def measure(make: Callable[[EnsembleSpec, int], Step], rounds: int) -> list[dict[str, object]]:
    """Time all in turn; ratios are to the single network's step of the same round."""
    steps = {name: make(spec, examples) for name, (spec, examples, _) in STRUCTURES.items()}
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if number >= 2:
                spent[name].append(time.perf_counter() - start)
    return [
        {
            "structure": name,
            "seconds": statistics.median(times),
            "ratio": statistics.median(
                one / (STRUCTURES[name][2] * other) for one, other in zip(times, spent["single"], strict=True)
            ),
        }
        for name, times in spent.items()
    ]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--backend", choices=["torch", "keras"], default="torch")
    parser.add_argument("--rounds", type=int, default=20, help="steps of each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    arguments = parser.parse_args()
    make = step_of_torch if arguments.backend == "torch" else step_of_keras
    results = measure(make, arguments.rounds)
    about = machine("torch", "keras", "numpy") | {"backend": arguments.backend}
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print_table(
        ["structure", "step ms", "ratio"],
        [[str(r["structure"]), f"{r['seconds'] * 1e3:.0f}", f"{r['ratio']:.3f}"] for r in results],  # type: ignore[operator]
    )
    if arguments.json:
        write_json(arguments.json, "member_step", about, results)


if __name__ == "__main__":
    main()
