"""Stopping when asked to: a scheduler's SIGTERM, a person's Ctrl-C."""

import signal
import threading
from typing import Any


class Interrupted(Exception):
    """The run stopped because of a signal; the same command goes on.

    Attributes:
        signal: its number; shells expect the exit status 128 + number.
    """

    def __init__(self, number: int, message: str):
        """Keeps what is to be told."""
        super().__init__(message)
        self.signal = number


class StopRequest:
    """While entered, SIGTERM and SIGINT are noted instead of ending the process.

    The second signal finds things as they were before, so it ends the process at once.
    Only the main thread can listen; in others nothing is ever noted.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        """Listens to nothing yet."""
        self._number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        """Starts listening."""
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._note) for number in self._SIGNALS
            }
        return self

    def __exit__(self, *exception: object) -> None:
        """Puts things back as they were."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @property
    def number(self) -> int:
        """Of the signal that has come; 0 = none has."""
        return self._number

    def _note(self, number: int, frame: Any) -> None:
        self._number = number
        self.__exit__()


def check(number: int, what: str) -> None:
    """Ends what is being done if a signal has come.

    Args:
        number: of the signal; 0 = none.
        what: was interrupted, and what becomes of it.

    Raises:
        Interrupted: it has.
    """
    if number:
        name = signal.Signals(number).name
        raise Interrupted(number, f"stopped by {name} {what}; the same command goes on")
