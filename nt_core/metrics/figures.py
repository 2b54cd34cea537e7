"""The figures that people read of an ensemble: their names, titles and units, in one table.

Records, tables, plots, and progress lines derive from it, so a new metric is a property of
:class:`nt_core.metrics.Metrics` and a line here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Unit = Literal["examples", "tokens"]
"""The unit of which metrics are means: examples of a classifier, or tokens of a language model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure.

    Attributes:
        name: the property of :class:`nt_core.metrics.Metrics`, and the key in records.
        title: in sentences and on axes.
        column: in tables that compare runs; None: as ``title``.
        unit: the runs that show it in such tables; None: all.
        leads: whether it is the one figure that stands for a run of its unit.
        of_members: the property that has one number for each member; None: there is none.
        percent: whether it is a share, which axes and progress lines show in percent.
        recorded: whether it stands in each epoch's record and in every table; others are in the JSON only.
    """

    name: str
    title: str
    column: str | None = None
    unit: Unit | None = None
    leads: bool = False
    of_members: str | None = None
    percent: bool = False
    recorded: bool = True

    @property
    def heading(self) -> str:
        """The heading of its column in a table that compares runs."""
        return self.column or self.title


FIGURES: Final = (
    Figure(
        name="accuracy",
        title="accuracy",
        unit="examples",
        leads=True,
        of_members="member_accuracy",
        percent=True,
    ),
    Figure(name="nll", title="NLL", of_members="member_nll"),
    Figure(
        name="perplexity",
        title="perplexity",
        column="perpl.",
        unit="tokens",
        leads=True,
        of_members="member_perplexity",
    ),
    Figure(name="ece", title="ECE", unit="examples"),
    Figure(name="disagreement", title="disagreement", column="disagr.", percent=True),
    Figure(name="disagreement_full_matrix", title="disagreement, full matrix", recorded=False),
)
"""Every figure, in the order of records."""

RECORDED: Final = tuple(figure for figure in FIGURES if figure.recorded)
"""The figures of each epoch's record."""

IN_TABLES: Final = (
    *(figure for figure in RECORDED if figure.leads),
    *(figure for figure in RECORDED if not figure.leads),
)
"""The same in the order of tables: those first that stand for a run."""


def leading(unit: Unit | str) -> Figure:
    """Return the figure that stands for a run.

    Args:
        unit: of which the run's metrics are means.

    Example:
        >>> leading("examples").name, leading("tokens").name
        ('accuracy', 'perplexity')
    """
    return next(figure for figure in FIGURES if figure.leads and figure.unit == unit)
