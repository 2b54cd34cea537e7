"""What one layer's topology update costs, against reading the layer once and against sorting it.

An update (RigL's and NeuroTrails') prunes the smallest |w| of the active positions and grows the largest |g|
of the inactive ones, 50 % of the active each: the most a schedule asks for, at the start of training. It
checks that all is finite. *Reading once* is ``weights.max()``, ``gradients.max()`` and
``np.count_nonzero(mask)``: each array passes through the processor one time.
With ``--device cuda`` the update is measured there, too, as PyTorch's backend makes it on a GPU, beside
reading the layer once there; ``--device cpu`` runs the same code on the processor.
Run as ``python benchmarks/topology_update.py --quick``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _common import interleaved_medians, machine, peak_bytes, print_table, write_json
from numpy.typing import NDArray

from nt_core import Dynamic, Random
from nt_core.masks import Moment
from nt_core.policies import Layer
from nt_core.topology import update

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]

DENSITY = 0.2
SWAPPED = 0.5
SORTED_UP_TO = 10**7  # beyond, sorting takes longer than the rest of the benchmark together


TOPOLOGY = Dynamic(sparsity=1 - DENSITY, drop_fraction=SWAPPED)


@dataclass(frozen=True)
class Work:
    """One layer, and how many connections to swap."""

    layer: Layer
    k: int

    @property
    def nbytes(self) -> int:
        """Bytes of weights, gradients and mask."""
        return sum(a.nbytes for a in (self.layer.weights, self.layer.gradients, self.layer.active))


def make_work(size: int) -> Work:
    """Draw a layer with exact zeros off the mask."""
    rng = np.random.default_rng(0)
    mask = rng.random(size, dtype=np.float32) < DENSITY
    weights = rng.standard_normal(size, dtype=np.float32)
    weights *= mask
    gradients = rng.standard_normal(size, dtype=np.float32)
    layer = Layer(name="w", weights=weights, gradients=gradients, active=mask)
    return Work(layer, int(SWAPPED * mask.sum()))


def read_once(work: Work) -> None:
    """Let every byte of the layer pass once."""
    work.layer.weights.max()
    work.layer.gradients.max()
    np.count_nonzero(work.layer.active)


def by_update(work: Work) -> object:
    """Update as the library does, at the first of many steps."""
    return update(TOPOLOGY, [work.layer], Moment(1, Random(0)), total_steps=10**9, targets={})


def _whole_scores(work: Work) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    active, outside = work.layer.active, np.float32(-np.inf)
    prune = np.where(active, -np.abs(work.layer.weights), outside)
    grow = np.where(active, outside, np.abs(work.layer.gradients))
    return prune, grow


def by_argpartition(work: Work) -> tuple[NDArray[Any], NDArray[Any]]:
    """Select by partitioning the whole layer; has no tie rule."""
    prune, grow = (np.argpartition(scores, -work.k)[-work.k :] for scores in _whole_scores(work))
    return prune, grow


def by_argsort(work: Work) -> tuple[NDArray[Any], NDArray[Any]]:
    """Select by sorting the whole layer; has no tie rule."""
    prune, grow = (np.argsort(scores)[-work.k :] for scores in _whole_scores(work))
    return prune, grow


def by_torch(work: Work) -> tuple[NDArray[Any], NDArray[Any]]:
    """Select by ``torch.topk`` over the whole layer on the processor; has no tie rule."""
    scores = (torch.from_numpy(whole) for whole in _whole_scores(work))
    prune, grow = (torch.topk(whole, work.k, sorted=False).indices.numpy() for whole in scores)
    return prune, grow


def on_device(work: Work, device: str) -> dict[str, Callable[[], object]]:
    """Return the update, and reading the layer once, on a device; each waits until it is done."""
    from nt_torch.topology.arrays import TorchArrays

    where = torch.device(device)
    names = ("weights", "gradients", "active")
    layer = replace(work.layer, **{n: torch.from_numpy(getattr(work.layer, n)).to(where) for n in names})
    moment = Moment(1, Random(0), TorchArrays(where))

    def wait() -> None:
        if where.type == "cuda":
            torch.cuda.synchronize(where)

    def read() -> None:
        layer.weights.max(), layer.gradients.max(), layer.active.count_nonzero()
        wait()

    def change() -> None:
        update(TOPOLOGY, [layer], moment, total_steps=10**9, targets={})
        wait()

    return {f"read once on {device}": read, f"update on {device}": change}


def measure(size: int, repeats: int, device: str | None) -> dict[str, Any]:
    """Time all contenders on one layer; peak memory of the library's way beside it."""
    work = make_work(size)
    ways: dict[str, Callable[[Work], object]] = {"read once": read_once, "update": by_update}
    if size <= SORTED_UP_TO:
        ways |= {"argpartition": by_argpartition, "argsort": by_argsort}
    if torch is not None:
        ways["torch.topk"] = by_torch
    contenders: dict[str, Callable[[], object]] = {name: partial(way, work) for name, way in ways.items()}
    contenders |= {} if device is None else on_device(work, device)
    medians = interleaved_medians(contenders, repeats=repeats)
    peak = peak_bytes(lambda: by_update(work))
    return {"size": size, "k": work.k, "seconds": medians, "peak_share_of_layer": peak / work.nbytes}


def as_rows(results: list[dict[str, Any]]) -> list[list[str]]:
    """Format the results for people."""
    rows = []
    for result in results:
        for name, spent in result["seconds"].items():
            memory = f"{result['peak_share_of_layer']:.1%}" if name == "update" else ""
            device = name.partition(" on ")[2]
            ratio = spent / result["seconds"][f"read once on {device}" if device else "read once"]
            rows.append([f"{result['size']:,}", name, f"{spent * 1e3:.2f}", f"{ratio:.1f}", memory])
    return rows


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="leave out the layer of 10^8 weights")
    parser.add_argument("--device", help="measure on it, too: cuda, cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    arguments = parser.parse_args()
    about = machine("numpy", "torch")
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    sizes = (10**6, 10**7) if arguments.quick else (10**6, 10**7, 10**8)
    results = [measure(size, 11, arguments.device) for size in sizes]
    print_table(["weights", "way", "median ms", "× read once", "extra memory / layer"], as_rows(results))
    if arguments.json:
        write_json(arguments.json, "topology_update", about, results)


if __name__ == "__main__":
    main()
