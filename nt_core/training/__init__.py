"""Declaration of a training: the recipe (optimiser, learning rate, data) and the plan of its phases.

Input: fields of a spec file. Output: values that every backend's trainer reads, and the members' training
batches. This room imports ``metrics``, ``structure``, and the ground.
"""

from nt_core.training.arrays import (
    IGNORED,
    Arrays,
    Reads,
    Rebatched,
    as_array,
    epoch_order,
    in_memory,
    is_batches,
)
from nt_core.training.batches import Trainable, trainable
from nt_core.training.inputs import Normalisation, Preprocessing
from nt_core.training.plan import AnyPlan, ExploreRefine, OneRun, Phase, Ratio, Timeline, longest_of
from nt_core.training.recipe import (
    SGD,
    Adam,
    AdamW,
    AnyOptimizer,
    Batches,
    Data,
    LearningRate,
    Report,
    Share,
    Text,
    Trained,
    Training,
    first_examples,
    member_batches,
)

__all__ = [
    "IGNORED",
    "SGD",
    "Adam",
    "AdamW",
    "AnyOptimizer",
    "AnyPlan",
    "Arrays",
    "Batches",
    "Data",
    "ExploreRefine",
    "LearningRate",
    "Normalisation",
    "OneRun",
    "Phase",
    "Preprocessing",
    "Ratio",
    "Reads",
    "Rebatched",
    "Report",
    "Share",
    "Text",
    "Timeline",
    "Trainable",
    "Trained",
    "Training",
    "as_array",
    "epoch_order",
    "first_examples",
    "in_memory",
    "is_batches",
    "longest_of",
    "member_batches",
    "trainable",
]
