"""What one layer's topology update costs, against reading the layer once and against sorting it.

An update prunes the smallest |w| of the active positions and grows the largest |g| of the inactive ones, 30 %
of the active each. *Reading once* is ``weights.max()``, ``gradients.max()`` and ``np.count_nonzero(mask)``:
each array passes through the processor one time. Run as ``python benchmarks/topology_update.py --quick``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _common import interleaved_medians, machine, peak_bytes, print_table, write_json
from numpy.typing import NDArray

from nt_core.selection import top_k

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]

DENSITY = 0.2
SWAPPED = 0.3
SORTED_UP_TO = 10**7  # beyond, sorting takes longer than the rest of the benchmark together


@dataclass(frozen=True)
class Layer:
    """Flat float32 weights and gradients and a bool mask of one layer, and how many to swap."""

    weights: NDArray[np.float32]
    gradients: NDArray[np.float32]
    mask: NDArray[np.bool_]
    k: int

    @property
    def nbytes(self) -> int:
        """Bytes of the three arrays."""
        return self.weights.nbytes + self.gradients.nbytes + self.mask.nbytes


def make_layer(size: int) -> Layer:
    """Draw a layer with exact zeros off the mask."""
    rng = np.random.default_rng(0)
    mask = rng.random(size, dtype=np.float32) < DENSITY
    weights = rng.standard_normal(size, dtype=np.float32)
    weights *= mask
    return Layer(weights, rng.standard_normal(size, dtype=np.float32), mask, int(SWAPPED * mask.sum()))


def read_once(layer: Layer) -> None:
    """Let every byte of the layer pass once."""
    layer.weights.max()
    layer.gradients.max()
    np.count_nonzero(layer.mask)


def by_top_k(layer: Layer) -> tuple[NDArray[Any], NDArray[Any]]:
    """Select as the library does."""
    pruned = top_k(lambda part: -np.abs(layer.weights[part]), layer.mask, layer.k)
    grown = top_k(lambda part: np.abs(layer.gradients[part]), layer.mask, layer.k, inverse=True)
    return pruned, grown


def _whole_scores(layer: Layer) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    prune = np.where(layer.mask, -np.abs(layer.weights), np.float32(-np.inf))
    grow = np.where(layer.mask, np.float32(-np.inf), np.abs(layer.gradients))
    return prune, grow


def by_argpartition(layer: Layer) -> tuple[NDArray[Any], NDArray[Any]]:
    """Select by partitioning the whole layer; has no tie rule."""
    prune, grow = (np.argpartition(scores, -layer.k)[-layer.k :] for scores in _whole_scores(layer))
    return prune, grow


def by_argsort(layer: Layer) -> tuple[NDArray[Any], NDArray[Any]]:
    """Select by sorting the whole layer; has no tie rule."""
    prune, grow = (np.argsort(scores)[-layer.k :] for scores in _whole_scores(layer))
    return prune, grow


def by_torch(layer: Layer) -> tuple[NDArray[Any], NDArray[Any]]:
    """Select by ``torch.topk`` over the whole layer on the processor; has no tie rule."""
    scores = (torch.from_numpy(whole) for whole in _whole_scores(layer))
    prune, grow = (torch.topk(whole, layer.k, sorted=False).indices.numpy() for whole in scores)
    return prune, grow


def measure(size: int, repeats: int) -> dict[str, Any]:
    """Time all contenders on one layer; peak memory of the library's way beside it."""
    layer = make_layer(size)
    ways: dict[str, Callable[[Layer], object]] = {"read once": read_once, "top_k": by_top_k}
    if size <= SORTED_UP_TO:
        ways |= {"argpartition": by_argpartition, "argsort": by_argsort}
    if torch is not None:
        ways["torch.topk"] = by_torch
    medians = interleaved_medians({name: partial(way, layer) for name, way in ways.items()}, repeats=repeats)
    peak = peak_bytes(lambda: by_top_k(layer))
    return {"size": size, "k": layer.k, "seconds": medians, "peak_share_of_layer": peak / layer.nbytes}


def as_rows(results: list[dict[str, Any]]) -> list[list[str]]:
    """Format the results for people."""
    rows = []
    for result in results:
        for name, spent in result["seconds"].items():
            memory = f"{result['peak_share_of_layer']:.1%}" if name == "top_k" else ""
            ratio = spent / result["seconds"]["read once"]
            rows.append([f"{result['size']:,}", name, f"{spent * 1e3:.2f}", f"{ratio:.1f}", memory])
    return rows


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="leave out the layer of 10^8 weights")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    arguments = parser.parse_args()
    about = machine("numpy", "torch")
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    sizes = (10**6, 10**7) if arguments.quick else (10**6, 10**7, 10**8)
    results = [measure(size, repeats=11) for size in sizes]
    print_table(["weights", "way", "median ms", "× read once", "extra memory / layer"], as_rows(results))
    if arguments.json:
        write_json(arguments.json, "topology_update", about, results)


if __name__ == "__main__":
    main()
