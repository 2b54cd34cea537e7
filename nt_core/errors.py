"""Errors that a user can cause; each message names place, expectation, finding, and remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Final

LONGEST_NAME: Final = 200
MOST_NAMES: Final = 100
"""Largest number of known names that an error lists."""


class NeuroTrailsError(ValueError):
    """Base class of all errors that a user's input can cause in this package.

    Example:
        >>> raise NeuroTrailsError("head 2: 512 connections exceed the 480 available")
        Traceback (most recent call last):
        nt_core.errors.NeuroTrailsError: head 2: 512 connections exceed the 480 available
    """


class GraphError(NeuroTrailsError):
    """Raised for an invalid block graph: mismatched shapes, a cycle, an unreachable block, a bad split."""


class AllocationError(NeuroTrailsError):
    """Raised for a sparsity that cannot be reached; the message states the feasible range."""


class TopologyError(NeuroTrailsError):
    """Raised for a topology update that cannot be made, for instance from a gradient that is not finite."""


class NotFiniteError(TopologyError):
    """Raised for a loss, gradient or weight that is NaN or infinite, before it changes the model."""


class SpecError(NeuroTrailsError):
    """Raised for an invalid spec: unknown key, wrong value, newer version.

    Attributes:
        mistakes: (path of the field, description of the mistake), where the error is about fields.
    """

    def __init__(self, message: str, mistakes: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.mistakes = tuple(mistakes)


class CheckpointError(NeuroTrailsError):
    """Raised for a checkpoint that is missing, truncated, altered, or of another spec."""


class DataError(NeuroTrailsError):
    """Raised for data that does not fit: no labels, labels outside the classes, images of another size."""


class NeuroTrailsWarning(UserWarning):
    """Category of warnings about a user's input that is computed with, but may be a mistake."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a suggestion of known names for a mistyped name, as the tail of an error message.

    Args:
        word: the mistyped name.
        known: all valid names.

    Returns:
        ``"; did you mean 'x'?"`` where a name is close, else ``"; known: …"``.

    Example:
        >>> nearest("neurotrial", ["neurotrails", "rigl"])
        "; did you mean 'neurotrails'?"
        >>> nearest("zzz", ["a", "b"])
        '; known: a, b'
    """
    names = [name for name in known if len(name) <= LONGEST_NAME]
    # Comparing two texts takes as long as the product of their lengths.
    close = difflib.get_close_matches(word, names, n=1) if len(word) <= LONGEST_NAME else []
    more = ", …" if len(names) > MOST_NAMES else ""
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names[:MOST_NAMES])}{more}"
