"""Requests to stop: Ctrl-C and the signal of a cluster's scheduler, answered between two steps."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class StopRequests:
    """Notes SIGINT and SIGTERM inside ``listening``; a second one of its kind takes effect at once.

    Attributes:
        asked: the signal that asked to stop; None: none did.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """The first signal lets the step at work finish, so that it can be saved."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def note(number: int, frame: Any) -> None:
            self.asked = signal.Signals(number)
            signal.signal(number, before[number])

        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
