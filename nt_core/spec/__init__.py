"""Specs: the whole declaration of an ensemble or a run, the presets of papers, and spec files.

Input: a graph and four choices, or a YAML file, or a preset's name. Output: an :class:`EnsembleSpec` and a
:class:`RunSpec`, checked at construction. This room imports ``graph``, ``files``, ``structure``,
``policies``, ``topology``, ``training``, and the ground.
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
