"""Requests to stop: Ctrl-C and the signal of a cluster's scheduler, handled between two steps."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

REPEATED = 1.0  # seconds within which a second SIGINT is taken for the same Ctrl-C, passed on by a launcher


class StopRequests:
    """Records signals inside ``listening``, so that the current step can be finished and saved.

    A second Ctrl-C takes effect at once. A second SIGTERM does not: schedulers send it to every process of a job, and
    launchers such as torchrun pass on the one that they received.

    Attributes:
        received: the first signal; None: there was none.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.received: signal.Signals | None = None
        self._clock, self._interrupted = clock, None
        self._before: dict[int, Any] = {}  # handlers of the signals that are listened to

    @contextlib.contextmanager
    def listening(self, *numbers: signal.Signals) -> Iterator[None]:
        """Record these signals inside the ``with`` block; signals of an outer block stay recorded until that ends."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        new = [number for number in numbers if number not in self._before]
        for number in new:
            self._before[number] = signal.getsignal(number)
            signal.signal(number, self._record)
        try:
            yield
        finally:
            for number in new:
                signal.signal(number, self._before.pop(number))

    def _record(self, number: int, frame: Any) -> None:
        self.received = self.received or signal.Signals(number)
        if number != signal.SIGINT:
            return
        if self._interrupted is None:
            self._interrupted = self._clock()
        elif self._clock() - self._interrupted >= REPEATED:
            signal.signal(number, self._before[number])
            signal.raise_signal(number)
