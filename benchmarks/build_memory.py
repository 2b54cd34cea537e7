"""What building a large model needs: memory at the peak, against that of its weights, and time.

LLaMA-350M with three heads has 0.84 billion parameters. Its masks and values are drawn weight by weight, so
that little more is held than the model itself. Run as ``python benchmarks/build_memory.py``.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

from _common import machine, print_table, write_json

import nt_models
import nt_torch
from nt_core import PRESETS
from nt_core.cost import cost


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="llama_350m", help="an architecture without required arguments")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    arguments = parser.parse_args()
    spec = PRESETS["neurotrails_lm"](nt_models.ARCHITECTURES[arguments.model]())
    parameters = cost(spec).parameters_total
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kibibytes on Linux
    start = time.perf_counter()
    model = nt_torch.compile(spec)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    masks = sum(b.numel() * b.element_size() for name, b in model.named_buffers() if "mask" in name)
    result = {
        "model": arguments.model,
        "parameters": parameters,
        "weights_gb": weights / 1e9,
        "masks_gb": masks / 1e9,
        "peak_gb": peak / 1e9,
        "ratio": peak / weights,
        "seconds": seconds,
    }
    about = machine("torch", "numpy")
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print_table(list(result), [[f"{v:.3f}" if isinstance(v, float) else f"{v}" for v in result.values()]])
    if arguments.json:
        write_json(arguments.json, "build_memory", about, [result])


if __name__ == "__main__":
    main()
