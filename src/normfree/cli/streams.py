"""Standard output and standard error whose readers go away while a verb is at work."""

import contextlib
import os
import select
import sys
from collections.abc import Iterator
from typing import Any


class Lossy:
    """A stream of text that loses what cannot be written: its reader has gone, or its disk is full."""

    def __init__(self, stream: Any):
        self.stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def lossy_errors() -> Iterator[None]:
    """Inside, no verb ends because what it says on standard error is not read; it may also be closed (None)."""
    before = sys.stderr
    with contextlib.ExitStack() as stack:
        stream = before
        if before is None:  # print would take standard output instead
            stream = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        sys.stderr = Lossy(stream)
        try:
            yield
        finally:
            sys.stderr = before
            if before is not None:
                _emptied(before)


def reader_gone(stream: Any) -> bool:
    """Whether nobody reads what is written to a stream any more, which is so for pipes and sockets alone."""
    try:
        descriptor = stream.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or no file of the system
        return False
    if not hasattr(select, "poll"):  # Windows
        return True
    poll = select.poll()
    poll.register(descriptor, 0)  # these two are always told
    return any(told & (select.POLLERR | select.POLLHUP) for _, told in poll.poll(0))


def discard(stream: Any) -> None:
    """Send what a stream still holds, and what comes, to nowhere: Python writes it out at its end and would fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _emptied(stream: Any) -> None:
    with contextlib.suppress(OSError, ValueError):  # closed, or no file of the system
        try:
            stream.flush()
        except OSError:
            discard(stream)
            stream.flush()
