"""What a training step of the masked model costs, against the same dense network written by hand.

Both are the multi-head network of NeuroTrails (M = 3). *Dense by hand* is plain PyTorch, as somebody would
write it without this library, with the same optimiser. *Masked* is compiled from a spec (S = 0.8) and trained
with ``nt_torch.Topology``: heads in a loop or batched, blocks computed again in the backward pass, under
``torch.compile``, in bfloat16. Every variant takes a step in turn in one process; a ratio is the median, over
the rounds, of a variant's time over that of *dense by hand* in the same round. Update steps are measured
apart and amortised at ΔT = 100. Then the update by itself, of one layer of 10 M and of 100 M weights, as the
device makes it; more of that: ``benchmarks/topology_update.py``.
Run as ``python benchmarks/train_step.py --quick``, or with ``--device cuda``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _by_hand import HEADS, Perceptron, WideResNet
from _common import interleaved_medians, machine, print_table, write_json
from _variants import DENSE, MASKED, OPTIMIZERS, VARIANTS, Trainee, Variant, make
from topology_update import SWAPPED, by_update, make_work, on_device, read_once
from torch import nn

import nt_models
from nt_core import BlockGraph, Dynamic, EnsembleSpec, MultiHead

INTERVAL = 100
UPDATED = (10**7, 10**8)
"""Weights of a layer whose update is timed."""
WARM_UP = 2

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network, by hand and as a graph, and its batch."""

    name: str
    by_hand: Callable[[], nn.Module]
    graph: BlockGraph
    split: int
    shape: tuple[int, ...]

    @property
    def spec(self) -> EnsembleSpec:
        """The same as a masked ensemble."""
        return EnsembleSpec(
            graph=self.graph,
            structure=MultiHead(split=self.split, heads=HEADS),
            topology=Dynamic(sparsity=0.8, interval=INTERVAL),
        )


def wide(depth: int, width: int, split: int, batch: int) -> Case:
    """Make a Wide-ResNet on images of 32 × 32 pixels."""
    return Case(
        name=f"WRN-{depth}-{width}, batch {batch}",
        by_hand=lambda: WideResNet(depth, width, 10, split),
        graph=nt_models.wide_resnet(depth=depth, width=width, classes=10),
        split=split,
        shape=(batch, 3, 32, 32),
    )


def perceptron(size: int, batch: int) -> Case:
    """Make a perceptron: little work for each weight."""
    return Case(
        name=f"MLP {size}, batch {batch}",
        by_hand=lambda: Perceptron(size, 10),
        graph=nt_models.mlp(inputs=size, hidden=(size, size), classes=10),
        split=1,
        shape=(batch, size),
    )


SMALL = (wide(10, 2, 1, 64), perceptron(1024, 128))
LARGE = (wide(16, 4, 2, 64), wide(28, 10, 4, 16), perceptron(4096, 128))


def measure(
    case: Case,
    variants: tuple[Variant, ...],
    optimizer: str,
    rounds: int,
    device: torch.device,
    clock: Clock,
) -> list[dict[str, Any]]:
    """Time variants, a step each in turn."""
    # A new batch each step: a network that has learnt its batch computes with denormal numbers, slowly.
    batches = []
    for _ in range(16):
        x = torch.randn(case.shape, device=device)
        x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        batches.append((x, torch.randint(10, case.shape[:1], device=device)))
    trainees = {
        each.name: make(each, case.spec, case.by_hand, batches, OPTIMIZERS[optimizer]) for each in variants
    }
    plain, updates = _alternate(trainees, rounds, device, clock)
    dense = plain[DENSE.name]
    found = []
    for variant in variants:
        ratio = _ratio(plain[variant.name], dense)
        record = {
            "network": case.name,
            "optimizer": optimizer,
            "variant": variant.name,
            "seconds": statistics.median(plain[variant.name]),
            "ratio": ratio,
            "peak_bytes": peak_bytes(trainees[variant.name].run, device),
        }
        if updates.get(variant.name):
            extra = statistics.median(updates[variant.name]) / statistics.median(dense)
            record["update_step_seconds"] = statistics.median(updates[variant.name])
            record["ratio_amortised"] = ((INTERVAL - 1) * ratio + extra) / INTERVAL
        found.append(record)
    return found


def _ratio(times: list[float], dense: list[float]) -> float:
    return statistics.median(own / other for own, other in zip(times, dense, strict=True))


def _alternate(
    trainees: Mapping[str, Trainee], rounds: int, device: torch.device, clock: Clock
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return the times of steps without an update, and of those with one."""
    plain: dict[str, list[float]] = {name: [] for name in trainees}
    updates: dict[str, list[float]] = {
        name: [] for name, trainee in trainees.items() if trainee.topology is not None
    }
    order = [*trainees.items()]
    for number in range(rounds + WARM_UP):
        due = number % 8 == 7
        order = [*order[1:], order[0]]
        for name, trainee in order:
            if trainee.topology is not None:
                trainee.topology.steps = INTERVAL - 1 if due else 1
            seconds = _seconds(trainee.run, device, clock)
            if number >= WARM_UP and not due:
                plain[name].append(seconds)
            elif number >= WARM_UP and name in updates:
                updates[name].append(seconds)
    return plain, updates


def _seconds(run: Callable[[], None], device: torch.device, clock: Clock) -> float:
    _wait(device)
    began = clock()
    run()
    _wait(device)
    return clock() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(run: Callable[[], None], device: torch.device) -> int:
    """Return how many bytes more are held at the height of a step than before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as seen:
        run()  # of what was allocated before it began, the profiler does not know the size
        with torch.profiler.record_function("measured step"):
            run()
    events = sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns())  # type: ignore[union-attr]
    began = next(event.start_ns() for event in events if event.name() == "measured step")
    held = peak = 0
    for event in events:
        if event.name() == "[memory]" and event.start_ns() > began:
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def measure_update(size: int, device: torch.device) -> dict[str, Any]:
    """Time the update of one layer, beside reading the layer once: on a CPU by NumPy, as it is made."""
    work = make_work(size)
    ways = {"read": partial(read_once, work), "update": partial(by_update, work)}
    if device.type != "cpu":
        ways = on_device(work, str(device))
    read, update = interleaved_medians(ways, repeats=7).values()
    return {"weights": size, "swapped": SWAPPED, "read_seconds": read, "update_seconds": update}


def as_row(record: Mapping[str, Any]) -> list[str]:
    """Format a record for people."""
    update = record.get("update_step_seconds")
    return [
        record["variant"],
        f"{record['seconds'] * 1e3:.1f}",
        f"{record['ratio']:.3f}",
        "" if update is None else f"{update * 1e3:.1f}",
        "" if update is None else f"{record['ratio_amortised']:.3f}",
        f"{record['peak_bytes'] / 2**20:.0f}",
    ]


HEADINGS = ("variant", "step ms", "ratio", "with update ms", f"ratio, ΔT = {INTERVAL}", "peak MiB")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="only the two small networks")
    parser.add_argument("--rounds", type=int, default=40, help="steps of each variant")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", help="cpu, cuda, …")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count the processor's seconds, of all threads, and not the clock's: where others compute too",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    about = machine("torch", "numpy") | {"threads": arguments.threads, "device": str(device)}
    if device.type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(device)
    clock = time.process_time if arguments.processor_time else time.perf_counter
    about["clock"] = clock.__name__
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    results = []
    for case in SMALL if arguments.quick else (*SMALL, *LARGE):
        for optimizer in OPTIMIZERS:
            variants = VARIANTS if optimizer == "SGD momentum" else (DENSE, MASKED)
            torch.compiler.reset()
            found = measure(case, variants, optimizer, arguments.rounds, device, clock)
            print(f"\n{case.name}, {optimizer}")
            print_table(HEADINGS, [as_row(record) for record in found])
            results += found
    updates = [measure_update(size, device) for size in UPDATED[: 1 if arguments.quick else None]]
    print(f"\none layer's topology update on {device}, swapping {SWAPPED:.0%} of its connections")
    rows = [
        [
            f"{found['weights']:,}",
            f"{found['update_seconds'] * 1e3:.1f}",
            f"{found['update_seconds'] / found['read_seconds']:.1f}",
        ]
        for found in updates
    ]
    print_table(("weights", "update ms", "× read once"), rows)
    results += updates
    if arguments.json:
        write_json(arguments.json, "train_step", about, results)


if __name__ == "__main__":
    main()
