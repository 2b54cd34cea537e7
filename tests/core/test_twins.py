"""The two training backends are twins: the same files, names and parameters, or an exception with its reason.

The files are read, not imported, so this needs neither PyTorch nor Keras.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

BACKENDS = Path(__file__).parents[2] / "backends"
TORCH, KERAS = BACKENDS / "nt_torch", BACKENDS / "nt_keras"

FILES = {
    "processes/__init__.py": "several processes: Keras leaves them to its engines' distribution",
    "processes/group.py": "the same",
    "processes/shards.py": "sharded weights (FSDP2) exist in PyTorch alone",
    "training/fsdp.py": "the same",
    "network/batched.py": "heads at once: in PyTorch a choice, by another table of ops",
    "network/heads.py": "the same",
    "network/execution.py": "the same",
    "network/measurement.py": "the same",
    "network/recomputation.py": "activation checkpointing, which Keras' engines do by themselves",
    "network/convolution.py": "PyTorch has no convolution with uneven padding",
    "network/parts.py": "a module of blocks; Keras writes layers by network/writer.py instead",
    "network/writer.py": "a functional model, written layer by layer; in PyTorch network/parts.py",
    "network/layers.py": "Keras lacks layers that PyTorch has",
    "network/kernels.py": "variables that Keras' users and optimisers write to; PyTorch's are parameters",
    "topology/agreement.py": "Keras saves the optimiser, and with it what a training was asked for",
    "topology/arrays.py": "updates on a GPU, on PyTorch's tensors; in Keras updates read NumPy arrays",
    "topology/gradients.py": "PyTorch's gradients are attributes; Keras hands them to the optimiser",
    "topology/hooks.py": "PyTorch has hooks on optimisers; Keras needs a wrapper",
    "topology/sparse.py": "that wrapper",
    "topology/wrapper.py": "that wrapper's base",
    "topology/zeros.py": "zeros on any engine; in PyTorch network/remask.py",
    "network/remask.py": "zeros in place; in Keras topology/zeros.py",
    "network/zeros.py": "a PyTorch model masks what others wrote to its weights, which PyTorch counts",
    "topology/state.py": "which state is elementwise; Keras' wrapper records what an optimiser makes",
    "topology/stepper.py": "optimisers inside others, and several; Keras compiles one",
    "training/acceleration.py": "device, precision and processes are accelerate's; in Keras the engine's",
    "training/loading.py": "batches as tensors; Keras reads NumPy arrays in fit",
    "training/keeper.py": "saving of states; in Keras a part of the callback training/watch.py",
    "training/steps.py": "a loop of our own; in Keras fit takes the steps",
    "training/watch.py": "callbacks of fit; in PyTorch training/keeper.py and the loop",
    "training/schedule.py": "how a dataset is cut into what fit reads",
    "engines/__init__.py": "TensorFlow, JAX and PyTorch under Keras; PyTorch is one",
    "engines/engine.py": "the same",
    "engines/devices.py": "the same",
    "engines/layouts.py": "the same: images are channels last in Keras",
}
"""Files that one backend has and the other has not."""

PUBLIC = {
    "Execution": "heads at once: in PyTorch a choice",
    "measure_heads": "the same",
    "MeasuredHeads": "the same",
    "shard": "FSDP2",
    "decay_groups": "groups of parameters are PyTorch's; Keras has exclude_from_weight_decay",
    "sparse": "Keras needs a wrapper around an optimiser; PyTorch has hooks",
    "TopologyUpdate": "a callback for fit",
    "EnsembleAccuracy": "a metric for compile; in a loop of one's own nt_core.Metrics does",
    "Disagreement": "the same",
}
"""Names that one package exports and the other does not."""

PARAMETERS = {
    "compile": "device and dtype are arguments in PyTorch; Keras models have a name, and an engine's device",
    "ensemble_loss": "in PyTorch of logits and targets, in Keras an object for model.compile",
    "Topology": "in Keras the optimiser is the model's",
    "train": "trackers and folder are accelerate's; shard and execution choices of PyTorch's",
}
"""Functions and classes whose parameters differ."""


def files(backend: Path) -> set[str]:
    return {path.relative_to(backend).as_posix() for path in backend.rglob("*.py")}


def exported(backend: Path) -> set[str]:
    listed = re.search(r"__all__ = \[([^\]]*)\]", (backend / "__init__.py").read_text(encoding="utf-8"))
    assert listed
    return set(re.findall(r'"(\w+)"', listed[1]))


def definitions(backend: Path, names: set[str]) -> dict[str, Any]:
    """Return where each name is defined, and the parameters of what it is called with."""
    found = {}
    for path in backend.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in names:
                found[node.name] = (path.relative_to(backend).as_posix(), parameters(node))
    return found


def parameters(node: ast.FunctionDef | ast.ClassDef) -> list[str] | None:
    if isinstance(node, ast.ClassDef):
        made = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
        return parameters(made[0]) if made else None
    every = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    return [argument.arg for argument in every if argument.arg != "self"]


def test_both_have_the_same_files_but_for_named_exceptions() -> None:
    assert files(TORCH) ^ files(KERAS) == set(FILES)


def test_both_export_the_same_names_but_for_named_exceptions() -> None:
    assert exported(TORCH) ^ exported(KERAS) == set(PUBLIC)


SHARED = sorted(exported(TORCH) & exported(KERAS) - {"Trained", "Update"})
"""The last two are nt_core's in both."""


@pytest.mark.parametrize("name", SHARED)
def test_a_name_means_the_same_in_both(name: str) -> None:
    (here, ours), (there, theirs) = (definitions(b, {name})[name] for b in (TORCH, KERAS))
    if name != "Ensemble":  # in Keras a model that is trained, too, in PyTorch a module
        assert here == there
        assert (ours != theirs) == (name in PARAMETERS), f"{name}: {ours} in PyTorch, {theirs} in Keras"


def test_models_answer_to_the_same_names() -> None:
    names = {"array", "mask", "masked", "set_mask", "density"}
    for backend, modules in ((TORCH, ["network/model.py"]), (KERAS, ["network/model.py", "compile.py"])):
        text = "\n".join((backend / module).read_text(encoding="utf-8") for module in modules)
        missing = {name for name in names if f"def {name}(" not in text}
        assert missing == set(), backend.name
