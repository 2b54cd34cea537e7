"""Specs: what is declared as a whole, the presets that stand for papers, and the file that holds it.

In go a graph and four choices, or a YAML file, or a preset's name; out come an :class:`EnsembleSpec` and a
:class:`RunSpec` that were checked at birth. It imports ``graph``, ``structure``, ``policies``, ``topology``,
``training``, ``files``, and the ground.
"""

from nt_core.spec.ensemble import Aggregation, EnsembleSpec, FittedAverage, Mean
from nt_core.spec.file import RunSpec, build_graph, json_schema, merge, read_spec, spell_out
from nt_core.spec.presets import PRESETS, fission, full_ensemble, neurotrails, neurotrails_lm, single, treenet

__all__ = [
    "PRESETS",
    "Aggregation",
    "EnsembleSpec",
    "FittedAverage",
    "Mean",
    "RunSpec",
    "build_graph",
    "fission",
    "full_ensemble",
    "json_schema",
    "merge",
    "neurotrails",
    "neurotrails_lm",
    "read_spec",
    "single",
    "spell_out",
    "treenet",
]
