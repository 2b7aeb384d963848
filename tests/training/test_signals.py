"""Which signals are noted, and which take effect."""

import signal
import threading

import pytest

from normfree.training import StopRequests

BOTH = signal.SIGINT, signal.SIGTERM


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture(autouse=True)
def interruptible():
    """A shell that starts the tests in the background has Ctrl-C ignored in them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def handlers():
    return [signal.getsignal(number) for number in BOTH]


def test_sigterm_is_noted_however_often_it_comes():
    """Schedulers send it to every process, and a launcher passes on what it got itself."""
    before, clock = handlers(), Clock()
    stop = StopRequests(clock)
    with stop.listening(*BOTH):
        assert stop.received is None
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
            clock.now += 10
    assert stop.received == signal.SIGTERM
    assert handlers() == before


def test_a_second_interrupt_takes_effect():
    before, clock = handlers(), Clock()
    stop = StopRequests(clock)
    with stop.listening(*BOTH):
        signal.raise_signal(signal.SIGINT)
        clock.now += 0.5  # the same one, which torchrun passed on
        signal.raise_signal(signal.SIGINT)
        clock.now += 0.5
        assert stop.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert handlers() == before


def test_the_first_request_counts():
    stop = StopRequests()
    with stop.listening(*BOTH):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert stop.received == signal.SIGTERM


def test_an_inner_one_adds_to_an_outer_one():
    """A command listens from its start, its training to Ctrl-C, too."""
    before, stop = handlers(), StopRequests()
    with stop.listening(signal.SIGTERM):
        assert signal.getsignal(signal.SIGINT) == before[0]
        signal.raise_signal(signal.SIGTERM)
        with stop.listening(*BOTH):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == before[0]
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == signal.SIGTERM
    assert handlers() == before


def test_another_thread_leaves_signals_alone():
    before, found = handlers(), []

    def listen():
        with StopRequests().listening(*BOTH):
            found.extend(handlers())

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == before
