"""Standard output and standard error whose readers go away while a verb is at work."""

import contextlib
import io
import logging
import os
import select
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from ..words import printable


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


@contextlib.contextmanager
def printable_notes() -> Iterator[None]:
    """Warnings, and log lines of libraries that nobody handles, hold names and contents of files as well."""
    form, handler = warnings.formatwarning, logging.lastResort
    warnings.formatwarning = lambda message, *where, **more: form(printable(str(message)), *where, **more)
    logging.lastResort = _Printable(logging.WARNING)
    try:
        yield
    finally:
        warnings.formatwarning, logging.lastResort = form, handler


class _Printable(logging.Handler):
    """Writes log lines to standard error as it is by then, as Python's own handler of such lines does."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:  # as every handler of logging: a line that cannot be written ends nothing
            self.handleError(record)

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextlib.contextmanager
def writable_output(utf8: bool) -> Iterator[None]:
    """Let standard output take every character: with ``utf8`` in UTF-8, else in the terminal's own encoding.

    What an encoding lacks is written as an escape. So are the bytes of a file's name that are no UTF-8: as \\udcXX,
    which is also how JSON writes them.
    """
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper):  # a notebook's, which takes everything
        yield
        return
    encoding, errors = stream.encoding, stream.errors
    stream.reconfigure(encoding="utf-8" if utf8 else None, errors="backslashreplace")
    try:
        yield
    finally:
        with contextlib.suppress(ValueError, OSError):  # closed, or its reader has gone
            stream.reconfigure(encoding=encoding, errors=errors)
