"""Handlers of Ctrl-C and SIGTERM: the first saves the state and stops, the second stops at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

ASKING: Final = (signal.SIGINT, signal.SIGTERM)


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
        os.write(2, b"\nstopping after this step; once more stops at once\n")

    ours = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, ask) for number in ASKING} if ours else {}
    try:
        yield lambda: bool(received)
    except Stopped as stopped:
        number = received[0] if received else signal.SIGTERM  # another process received it
        raise Interrupted(f"{stopped}; go on with: nt train --resume {folder}", number) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
