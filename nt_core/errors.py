"""Errors a user can cause. Each message says where, what was expected, what was found, and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Final

LONGEST_NAME: Final = 200
MOST_NAMES: Final = 100
"""What is compared with a mistyped name, and how much is listed."""


class NeuroTrailsError(ValueError):
    """Base of every error that a user's input can cause in this package.

    Example:
        >>> raise NeuroTrailsError("head 2: 512 connections exceed the 480 available")
        Traceback (most recent call last):
        nt_core.errors.NeuroTrailsError: head 2: 512 connections exceed the 480 available
    """


class GraphError(NeuroTrailsError):
    """A block graph that cannot be: mismatched shapes, a cycle, an unreachable block, a split outside it."""


class AllocationError(NeuroTrailsError):
    """A sparsity that cannot be reached; the message states the feasible range."""


class TopologyError(NeuroTrailsError):
    """A topology update that cannot be made, for instance from a gradient that is not finite."""


class NotFiniteError(TopologyError):
    """A loss, gradient or weight that is NaN or infinite; nothing was changed by it."""


class SpecError(NeuroTrailsError):
    """A spec that does not validate: unknown key, wrong value, newer version.

    Attributes:
        mistakes: (path of the field, what is wrong with it), where the error is about fields.
    """

    def __init__(self, message: str, mistakes: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.mistakes = tuple(mistakes)


class CheckpointError(NeuroTrailsError):
    """A checkpoint that is missing, truncated, altered, or of another spec."""


class DataError(NeuroTrailsError):
    """A dataset that does not fit: no labels, labels outside the classes, images of another size."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Say which known names are meant by a mistyped one, as the tail of an error message.

    Args:
        word: what was found.
        known: all that could have been meant.

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
