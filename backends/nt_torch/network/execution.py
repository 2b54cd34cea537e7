"""Execution options of a model, which affect speed and memory but not the results."""

from __future__ import annotations

from typing import ClassVar, Literal

from nt_core.errors import SpecError
from nt_core.structure import Layout
from nt_core.structure.layout import part_label
from nt_core.values import Value


class Execution(Value):
    """Execution options of the forward and backward pass, which do not affect weights, masks or checkpoints.

    Attributes:
        heads: ``loop``: one after another; ``batched``: all at once, with their weights stacked (grouped
            convolutions, batched products); ``auto``: the way that :func:`nt_torch.train` measures as faster.
        activation_checkpointing: whether only the values between blocks are kept, and the values inside a
            block are recomputed in the backward pass (Chen et al. 2016, arXiv 1604.06174): less memory, about
            a third more time.

    Example:
        >>> import nt_core, nt_models, nt_torch
        >>> graph = nt_models.mlp(inputs=8, hidden=(16, 16), classes=3)
        >>> model = nt_torch.compile(nt_core.PRESETS["neurotrails"](graph, sparsity=0.5))
        >>> model.execution = Execution(heads="batched")
    """

    error_path: ClassVar[str] = "execution"

    heads: Literal["loop", "batched", "auto"] = "loop"
    activation_checkpointing: bool = False

    def expect_possible(self, layout: Layout) -> Execution:
        """Return these options, after a check that a model of the layout supports them.

        Raises:
            SpecError: the layout does not support them; the message gives the reason.
        """
        if self.heads == "auto":
            raise SpecError(
                "execution.heads: auto is chosen by nt_torch.train, which measures, or by "
                "nt_torch.measure_heads; expected loop or batched for a model"
            )
        reason = why_not_batched(layout)
        if self.heads == "batched" and reason is not None:
            raise SpecError(f"execution.heads: batched is not possible: {reason}; choose loop")
        return self


def why_not_batched(layout: Layout) -> str | None:
    """Return the reason why heads cannot be batched; None: heads can be batched.

    Example:
        >>> import nt_models
        >>> from nt_core import Single
        >>> why_not_batched(Single().layout(nt_models.mlp(inputs=8, hidden=(9,), classes=3)))
        'expected at least two heads, found 1'
    """
    if not layout.heads:
        return "members share every block and are computed at once anyway"
    if len(layout.heads) < 2:
        return "expected at least two heads, found 1"
    first = layout.heads[0]
    for head in layout.heads[1:]:
        if head.blocks != first.blocks:
            return (
                f"heads are not alike: {part_label(first.name)} has {len(first.blocks)} blocks from "
                f"{first.blocks[0].name!r} on, {part_label(head.name)} has {len(head.blocks)} from "
                f"{head.blocks[0].name!r} on"
            )
    return None
