"""Every method on real images under one recipe: what each gives, and what it costs.

All methods train the same small Wide-ResNet on the same part of CIFAR-10 with the same recipe; a spec differs
from the others only in the choices that make its method. Each run ends as one small JSON file under
``--results``; what is there is not run again, so the comparison can be stopped and resumed at any time, and
several processes can share it with different ``--methods``. ``--table`` writes the page from what is there.

Run as ``python benchmarks/cifar10.py --data FOLDER``, where the folder is what
``datasets.load_dataset`` reads with the columns of CIFAR-10.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from _common import machine

import nt_models
from nt_core.spec import RunSpec, merge, spell_out
from nt_lab.evaluation.evaluate import evaluate
from nt_lab.training.train import train

EXAMPLES: Final = 5_000
EPOCHS: Final = 16
RECIPE: Final[Mapping[str, Any]] = {
    "graph": {"name": "wide_resnet", "depth": 10, "width": 2, "classes": 10, "size": 32},
    "plan": {"epochs": EPOCHS},
    "training": {
        "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        "learning_rate": {"schedule": "cosine"},
        "batch_size": 64,
    },
    # Tested in full when the training is over, on a tenth of it after each epoch.
    "data": {"train": f"train[:{EXAMPLES}]", "test": "test[:1000]", "augment": "flip_crop"},
}
INTERVAL: Final = {
    "interval": 25
}  # of 1,264 steps; the papers' 100 is meant for runs a hundred times as long
LONGER: Final = 1.8
"""How many times as long the papers train NeuroTrails and EDST (450 epochs) as the dense network (250)."""
EQUAL: Final = 4.4
"""How many times as long NeuroTrails may train for no more FLOPs than the full ensemble (a little fewer)."""

HEADS: Final = {"structure": {"kind": "multi_head", "split": 1, "heads": 3}, "loss": "sum"}
"""Losses are summed, as independent members' are: each head then learns as fast as a single network does."""

SPARSE: Final = {"sparsity": 0.8, **INTERVAL}
NEUROTRAILS: Final = {"preset": "neurotrails", "topology": INTERVAL, **HEADS}

METHODS: Final[Mapping[str, Mapping[str, Any]]] = {
    "single": {"preset": "single"},
    "full_ensemble": {"preset": "full_ensemble"},
    "treenet": {"preset": "treenet", **HEADS},
    "static": {"preset": "static", **HEADS},
    "neurotrails": NEUROTRAILS,
    # What decides how NeuroTrails does: its length (the papers', that of as many FLOPs as the full ensemble),
    # and what the loss does to the step: a mean over three heads divides a head's gradient by three.
    "neurotrails_extended": {**NEUROTRAILS, "plan": {"extend": LONGER}},
    "neurotrails_equal_flops": {**NEUROTRAILS, "plan": {"extend": EQUAL}},
    # What a single network makes of the full ensemble's FLOPs: is it the method, or the length?
    "single_equal_flops": {"preset": "single", "plan": {"epochs": 3 * EPOCHS}},
    "neurotrails_mean": {**NEUROTRAILS, "loss": "mean"},
    "treenet_mean": {"preset": "treenet", **HEADS, "loss": "mean"},
    "static_mean": {"preset": "static", **HEADS, "loss": "mean"},
    "single_third_rate": {"preset": "single", "training": {"optimizer": {"lr": 0.1 / 3}}},
    "batch_ensemble": {"preset": "batch_ensemble", "structure": {"batch": "tile"}},
    "mimo": {"preset": "mimo", "structure": {"repetitions": 2}},
    "fission": {"preset": "fission"},
    "dst_ensemble": {"preset": "dst_ensemble", "topology": INTERVAL},
    "edst": {"preset": "edst", "topology": INTERVAL, "plan": {"epochs": LONGER * EPOCHS}},
    "set": {"preset": "set", "topology": SPARSE},
    "rigl": {"preset": "rigl", "topology": SPARSE},
    "snfs": {"preset": "snfs", "topology": SPARSE},
    "mest": {"preset": "mest", "topology": SPARSE},
    "deep_r": {"preset": "deep_r", "topology": {"sparsity": 0.8}},
    "chts": {"preset": "chts", "topology": SPARSE},
    "snip": {"preset": "snip"},
    "grasp": {"preset": "grasp"},
    "magnitude_pruning": {"preset": "magnitude_pruning"},
    "gradual_pruning": {"preset": "gradual_pruning", "topology": INTERVAL},
}
SEEDS: Final = {"single": 3, "full_ensemble": 3, "treenet": 3, "static": 3, "neurotrails": 3}
"""How many seeds a method gets; one where it is not named."""

FIGURES: Final = ("accuracy", "nll", "ece", "disagreement")


def declare(method: str, seed: int, data: str) -> RunSpec:
    """Return the spec of one run."""
    choices = {"name": method, "seed": seed, "data": {"source": data}}
    return spell_out(merge(merge(RECIPE, METHODS[method]), choices), nt_models.ARCHITECTURES)


def measure(run: RunSpec) -> dict[str, Any]:
    """Train and test one run; its seconds are the processor's, so that a busy machine does not count."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        record = train(run, Path(folder) / run.name, device="cpu")
        seconds = time.process_time() - began
        metrics = evaluate(Path(folder) / run.name, data={"test": "test"}, device="cpu").to_dict()
    spec = run.to_dict()
    del spec["data"]["source"]
    return {
        "method": run.name,
        "seed": run.seed,
        "metrics": metrics,
        "cost": record["cost"],
        "examples": record["examples"],
        "cpu_seconds": seconds,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": record["versions"],
        "machine": machine("torch"),
        "spec": spec,
    }


def results_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Read what was measured, by method, seeds ascending."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(result["method"], []).append(result)
    return found


def spread(values: Sequence[float], digits: int) -> str:
    """Write a mean and, of several values, their standard deviation.

    Example:
        >>> spread([0.5, 0.7], 2), spread([0.5], 2)
        ('0.60 ± 0.14', '0.50')
    """
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def line(method: str, runs: Sequence[Mapping[str, Any]], single: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one method's line of the table; costs are relative to the single dense network's training."""
    dense = statistics.fmean(run["cost"]["flops"]["training_step"] * run["examples"] for run in single)
    training = [run["cost"]["flops"]["training_step"] * run["examples"] / dense for run in runs]
    inference = [run["cost"]["relative_to_single_dense"]["flops_inference"] for run in runs]
    return [
        f"`{method}`",
        str(len(runs)),
        *[spread([run["metrics"][name] for run in runs], 4 if name == "accuracy" else 3) for name in FIGURES],
        f"{statistics.fmean(training):.2f}×",
        f"{statistics.fmean(inference):.2f}×",
        spread([run["cpu_seconds"] for run in runs], 0),
    ]


def write_table(folder: Path, page: Path, intro: str) -> None:
    """Write the page: the table, and what is needed to repeat it."""
    found = results_of(folder)
    headings = [
        "method",
        "seeds",
        "accuracy",
        "NLL",
        "ECE",
        "disagreement",
        "training FLOPs",
        "inference FLOPs",
        "CPU s",
    ]
    rows = [line(method, found[method], found["single"]) for method in METHODS if method in found]
    table = ["| " + " | ".join(cells) + " |" for cells in (headings, ["---"] * len(headings), *rows)]
    text = page.read_text(encoding="utf-8") if page.exists() else intro
    before, _, rest = text.partition("<!-- table -->")
    _, _, after = rest.partition("<!-- end of table -->")
    page.write_text(
        f"{before}<!-- table -->\n\n" + "\n".join(table) + f"\n\n<!-- end of table -->{after}",
        encoding="utf-8",
    )


def main() -> None:
    """Train what is wanted and not there yet, or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="uoft-cs/cifar10", help="folder, or name on the hub")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, help="how many; default: each method's own number")
    parser.add_argument("--results", type=Path, default=Path("docs/results/cifar10"))
    parser.add_argument("--table", type=Path, help="write the table into this page and train nothing")
    given = parser.parse_args()
    if given.table:
        write_table(given.results, given.table, "# CIFAR-10\n\n<!-- table -->\n<!-- end of table -->\n")
        return
    torch.set_num_threads(1)
    given.results.mkdir(parents=True, exist_ok=True)
    wanted = {method: given.seeds or SEEDS.get(method, 1) for method in given.methods}
    for seed in range(max(wanted.values())):
        for method in (name for name, seeds in wanted.items() if seed < seeds):
            file = given.results / f"{method}-{seed}.json"
            if file.exists():
                continue
            result = measure(declare(method, seed, given.data))
            file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            print(file.stem, result["metrics"]["accuracy"], f"{result['cpu_seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
