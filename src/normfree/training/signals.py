"""Requests to stop: Ctrl-C and the signal of a cluster's scheduler, answered between two steps."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

SAME = 1.0  # seconds within which a second Ctrl-C is the first one, which a launcher passed on


class StopRequests:
    """Notes signals inside ``listening``, so that the step at work can be finished and saved.

    A second Ctrl-C takes effect at once. A second SIGTERM does not: schedulers send it to every process of a job, and
    launchers such as torchrun pass on the one that they got themselves.

    Attributes:
        asked: the signal that asked to stop; None: none did.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.asked: signal.Signals | None = None
        self._clock, self._interrupted = clock, None
        self._before: dict[int, Any] = {}  # handlers of the signals that are listened to

    @contextlib.contextmanager
    def listening(self, *numbers: signal.Signals) -> Iterator[None]:
        """Note these signals, inside; those that are noted already stay so until the outer one ends."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        new = [number for number in numbers if number not in self._before]
        for number in new:
            self._before[number] = signal.getsignal(number)
            signal.signal(number, self._note)
        try:
            yield
        finally:
            for number in new:
                signal.signal(number, self._before.pop(number))

    def _note(self, number: int, frame: Any) -> None:
        self.asked = self.asked or signal.Signals(number)
        if number != signal.SIGINT:
            return
        if self._interrupted is None:
            self._interrupted = self._clock()
        elif self._clock() - self._interrupted >= SAME:
            signal.signal(number, self._before[number])
            signal.raise_signal(number)
