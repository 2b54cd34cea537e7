"""The PyTorch backend: compile a spec, train it with its topology, evaluate, save and load."""

from nt_core.training import Trained
from nt_core.update import Update
from nt_torch.checkpoint import checkpoint, load, restore
from nt_torch.compile import Ensemble, compile, ensemble_loss  # noqa: A004
from nt_torch.evaluate import evaluate, predict
from nt_torch.execution import Execution
from nt_torch.fsdp import shard
from nt_torch.measurement import MeasuredHeads, measure_heads
from nt_torch.optimizers import decay_groups
from nt_torch.saliency import prune_at_init, saliency_gradients
from nt_torch.topology import Topology
from nt_torch.train import train

__all__ = [
    "Ensemble",
    "Execution",
    "MeasuredHeads",
    "Topology",
    "Trained",
    "Update",
    "checkpoint",
    "compile",
    "decay_groups",
    "ensemble_loss",
    "evaluate",
    "load",
    "measure_heads",
    "predict",
    "prune_at_init",
    "restore",
    "saliency_gradients",
    "shard",
    "train",
]
