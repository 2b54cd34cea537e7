"""What a training step of the masked model costs, against the same dense network written by hand.

Both are the multi-head network of NeuroTrails (M = 3); *dense by hand* is plain PyTorch, as somebody would
write it without this library, with the same optimiser. *Masked* is compiled from a spec (S = 0.8) and trained
with ``nt_torch.Topology``; its update steps are measured apart and amortised at ΔT = 100. Steps alternate in
one process. Run as ``python benchmarks/train_step.py --quick``.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _common import machine, print_table, write_json
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

import nt_models
import nt_torch
from nt_core import BlockGraph, Dynamic, EnsembleSpec, MultiHead

INTERVAL = 100
HEADS = 3


class Residual(nn.Module):
    """A pre-activation block of a Wide-ResNet."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels_in), nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        same = channels_in == channels and stride == 1
        self.shortcut = None if same else nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H', W')."""
        h = relu(self.norm1(x))
        skip = x if self.shortcut is None else self.shortcut(h)
        return self.conv2(relu(self.norm2(self.conv1(h)))) + skip


class WideResNet(nn.Module):
    """A Wide-ResNet cut after ``split`` blocks, with ``HEADS`` heads."""

    def __init__(self, depth: int, width: int, classes: int, split: int) -> None:
        super().__init__()
        plan = []
        channels = 16
        for stage in range(3):
            for i in range((depth - 4) // 6):
                plan.append((channels, 16 * width * 2**stage, 2 if stage and not i else 1))
                channels = plan[-1][1]
        stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.backbone = nn.Sequential(stem, *(Residual(*block) for block in plan[:split]))
        self.heads = nn.ModuleList(
            nn.Sequential(
                *(Residual(*block) for block in plan[split:]),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(channels, classes),
            )
            for _ in range(HEADS)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) → (M, B, classes)."""
        shared = self.backbone(x)
        return torch.stack([head(shared) for head in self.heads])


class Perceptron(nn.Module):
    """A multi-layer perceptron with ``HEADS`` heads from the second layer on: little work for each weight."""

    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(size, size), nn.ReLU())
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, classes)) for _ in range(HEADS)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, size) → (M, B, classes)."""
        shared = self.backbone(x)
        return torch.stack([head(shared) for head in self.heads])


Optimizer = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizer] = {
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=5e-4),
    "Adam, fused": lambda p: torch.optim.Adam(p, lr=1e-3, fused=True),
    # Its square root takes longer for exact zeros on CPUs where PyTorch takes it from MKL.
    "Adam, plain": lambda p: torch.optim.Adam(p, lr=1e-3),
}


def measure(
    by_hand: nn.Module, graph: BlockGraph, split: int, x: Tensor, make: Optimizer, rounds: int
) -> dict[str, float]:
    """Time both, a step each in turn."""
    spec = EnsembleSpec(
        graph=graph,
        structure=MultiHead(split=split, heads=HEADS),
        topology=Dynamic(sparsity=0.8, interval=INTERVAL),
    )
    masked = nt_torch.compile(spec)
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
        by_hand, masked = (m.to(memory_format=torch.channels_last) for m in (by_hand, masked))
    # A new batch each step: a network that has learnt its batch computes with denormal numbers, slowly.
    batches = [(torch.randn_like(x), torch.randint(graph.output_shape[0], (len(x),))) for _ in range(16)]
    dense_batches, masked_batches = itertools.cycle(batches), itertools.cycle(batches)
    dense_optimizer, optimizer = make(by_hand.parameters()), make(masked.parameters())
    topology = nt_torch.Topology(masked, optimizer, total_steps=10**6)

    def dense_step() -> None:
        x, y = next(dense_batches)
        dense_optimizer.zero_grad()
        logits = by_hand(x)
        cross_entropy(logits.flatten(0, 1), y.repeat(HEADS)).backward()
        dense_optimizer.step()

    def masked_step() -> None:
        x, y = next(masked_batches)
        optimizer.zero_grad()
        nt_torch.ensemble_loss(masked(x), y).backward()
        optimizer.step()
        topology.step()

    return _alternate(dense_step, masked_step, topology, rounds)


def _alternate(
    dense_step: Callable[[], None], masked_step: Callable[[], None], topology: nt_torch.Topology, rounds: int
) -> dict[str, float]:
    dense_times, masked_times, update_times, ratios = [], [], [], []
    for number in range(rounds + 2):
        updates = number % 8 == 7
        topology.steps = INTERVAL - 1 if updates else 1
        spent = []
        for step in (dense_step, masked_step) if number % 2 else (masked_step, dense_step):
            start = time.perf_counter()
            step()
            spent.append(time.perf_counter() - start)
        dense, masked = spent if number % 2 else spent[::-1]
        if number < 2:
            continue
        dense_times.append(dense)
        (update_times if updates else masked_times).append(masked)
        if not updates:
            ratios.append(masked / dense)
    plain, extra = statistics.median(ratios), statistics.median(update_times) / statistics.median(dense_times)
    return {
        "dense_seconds": statistics.median(dense_times),
        "masked_seconds": statistics.median(masked_times),
        "update_step_seconds": statistics.median(update_times),
        "ratio": plain,
        "ratio_amortised": ((INTERVAL - 1) * plain + extra) / INTERVAL,
    }


def cases(quick: bool) -> list[tuple[str, Callable[[], tuple[nn.Module, BlockGraph, int, Tensor]]]]:
    """List what is measured: a name, and what makes the network by hand, its graph, its split, a batch."""

    def wide(depth: int, width: int, split: int, batch: int) -> tuple[nn.Module, BlockGraph, int, Tensor]:
        graph = nt_models.wide_resnet(depth=depth, width=width, classes=10)
        return WideResNet(depth, width, 10, split), graph, split, torch.randn(batch, 3, 32, 32)

    def perceptron(size: int, batch: int) -> tuple[nn.Module, BlockGraph, int, Tensor]:
        graph = nt_models.mlp(inputs=size, hidden=(size, size), classes=10)
        return Perceptron(size, 10), graph, 1, torch.randn(batch, size)

    small: list[tuple[str, Callable[[], tuple[nn.Module, BlockGraph, int, Tensor]]]] = [
        ("WRN-10-2, batch 64", lambda: wide(10, 2, 1, 64)),
        ("MLP 1024, batch 128", lambda: perceptron(1024, 128)),
    ]
    large: list[tuple[str, Callable[[], tuple[nn.Module, BlockGraph, int, Tensor]]]] = [
        ("WRN-16-4, batch 64", lambda: wide(16, 4, 2, 64)),
        ("WRN-28-10, batch 16", lambda: wide(28, 10, 4, 16)),
        ("MLP 4096, batch 128", lambda: perceptron(4096, 128)),
    ]
    return small if quick else [*small, *large]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="only the two small networks")
    parser.add_argument("--rounds", type=int, default=40, help="pairs of steps for each case")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    about = machine("torch", "numpy") | {"threads": arguments.threads}
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    results = []
    for name, build in cases(arguments.quick):
        for optimizer, make in OPTIMIZERS.items():
            figures = measure(*build(), make, arguments.rounds)
            results.append({"network": name, "optimizer": optimizer, **figures})
    print_table(
        ["network", "optimizer", "dense ms", "masked ms", "with update ms", "ratio", "ratio, ΔT = 100"],
        [
            [
                str(r["network"]),
                str(r["optimizer"]),
                *(
                    f"{r[key] * 1e3:.1f}"
                    for key in ("dense_seconds", "masked_seconds", "update_step_seconds")
                ),
                *(f"{r[key]:.3f}" for key in ("ratio", "ratio_amortised")),
            ]
            for r in results
        ],
    )
    if arguments.json:
        write_json(arguments.json, "train_step", about, results)


if __name__ == "__main__":
    main()
