"""The PyTorch backend: compile a spec, train it with its topology, evaluate, save and load."""

from nt_core.topology import Update
from nt_core.training import Trained
from nt_torch.checkpoint import checkpoint, load, restore, save, save_run
from nt_torch.compile import compile  # noqa: A004
from nt_torch.evaluate import evaluate, predict
from nt_torch.network.execution import Execution
from nt_torch.network.losses import ensemble_loss
from nt_torch.network.measurement import MeasuredHeads, measure_heads
from nt_torch.network.model import Ensemble
from nt_torch.topology.optimizers import decay_groups
from nt_torch.topology.topology import Topology
from nt_torch.training.fsdp import shard
from nt_torch.training.saliency import prune_at_init, saliency_gradients
from nt_torch.training.train import train

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
    "save",
    "save_run",
    "shard",
    "train",
]
