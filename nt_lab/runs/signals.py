"""Handlers of Ctrl-C, SIGTERM and SIGHUP: the first saves the state and stops, the second stops at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final

ASKING: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Signals that ask a training to stop; Windows has no SIGHUP, by which a closing terminal asks."""


class Interrupted(Exception):  # noqa: N818 - nothing went wrong
    """Raised when a signal stopped a training, whose state is saved.

    Attributes:
        exit_code: 128 + the signal's number, as shells have it.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


@contextmanager
def stopping(folder: Path) -> Iterator[Callable[[], bool]]:
    """Give a function that returns whether a signal has asked the training to stop.

    Args:
        folder: of the run, for the final message.

    Raises:
        Interrupted: the training stopped because of a signal.
    """
    from nt_core.states import Stopped

    received: list[int] = []

    def ask(number: int, _: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        with suppress(OSError):  # of a terminal that was closed
            os.write(2, b"\nstopping after this step; once more stops at once\n")

    ours = threading.current_thread() is threading.main_thread()
    asking = [number for number in ASKING if number not in _ignored()] if ours else []
    before = {number: signal.signal(number, ask) for number in asking}
    try:
        yield lambda: bool(received)
    except Stopped as stopped:
        number = received[0] if received else signal.SIGTERM  # another process received it
        raise Interrupted(f"{stopped}; go on with: nt train --resume {folder}", number) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignored() -> set[int]:
    """Return the hangup signal if it is ignored, which is the purpose of ``nohup``."""
    hangup = getattr(signal, "SIGHUP", None)
    return {hangup} if hangup and signal.getsignal(hangup) is signal.SIG_IGN else set()
