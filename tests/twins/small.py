"""Networks and data so small that training takes a moment."""

import numpy as np

import nt_models
from nt_core import PRESETS
from nt_core.testing import Blobs

GRAPH = nt_models.mlp(inputs=6, hidden=(16, 16), classes=3)


def short(preset, graph=GRAPH):
    spec = PRESETS[preset](graph)
    if not hasattr(spec.topology, "interval"):
        return spec
    sparsity = spec.topology.sparsity if spec.topology.sparsity <= 0.8 else 0.6  # 0.99 of so few is too much
    return spec.replace(topology=spec.topology.replace(interval=2, sparsity=sparsity))


class Images(Blobs):
    def epoch(self, number, batch_size, first=0):
        for inputs, labels in super().epoch(number, batch_size, first):
            yield np.resize(inputs, (len(inputs), 1, 8, 8)), labels
