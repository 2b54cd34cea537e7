"""Check of a network's memory against the machine's, before any allocation."""

from __future__ import annotations

import os
import sys
from typing import Final

from nt_core.errors import NeuroTrailsError
from nt_core.structure import Layout

FLOAT_BYTES: Final = 4


def expect_memory(layout: Layout, where: str) -> None:
    """Check that a network's weights, dense and in float32, fit into the machine's memory.

    The check comes before weights are made, because the declaration and the cost of even the largest network
    take hardly any memory.

    Args:
        layout: of the network.
        where: the source of the declaration, for the error.

    Raises:
        NeuroTrailsError: the weights do not fit.
    """
    needed, found = FLOAT_BYTES * sum(placed.weight.size for placed in layout.weights), machine_bytes()
    if needed > found:
        raise NeuroTrailsError(
            f"{where}: its weights take {_gigabytes(needed)} of memory, expected at most the "
            f"{_gigabytes(found)} of this machine; use a larger one, or declare a smaller network"
        )


def machine_bytes() -> int:
    """Return the largest memory of this process: the machine's, or less where a limit is set."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError, ValueError):  # pragma: no cover - other systems do not say
        return sys.maxsize
    return pages if limit == resource.RLIM_INFINITY else min(pages, limit)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"
