"""The Keras backend: compile a spec, train it with its topology, evaluate, save and load."""

from nt_core.topology import Update
from nt_core.training import Trained
from nt_keras.checkpoint import checkpoint, load, restore, save, save_run
from nt_keras.compile import Ensemble, compile  # noqa: A004
from nt_keras.evaluate import evaluate, predict
from nt_keras.network.losses import Disagreement, EnsembleAccuracy, ensemble_loss
from nt_keras.topology.sparse import sparse
from nt_keras.topology.topology import Topology, TopologyUpdate
from nt_keras.training.saliency import prune_at_init, saliency_gradients
from nt_keras.training.train import train

__all__ = [
    "Disagreement",
    "Ensemble",
    "EnsembleAccuracy",
    "Topology",
    "TopologyUpdate",
    "Trained",
    "Update",
    "checkpoint",
    "compile",
    "ensemble_loss",
    "evaluate",
    "load",
    "predict",
    "prune_at_init",
    "restore",
    "saliency_gradients",
    "save",
    "save_run",
    "sparse",
    "train",
]
