"""Words of messages, and how text reaches a terminal: names of files and what is in them may be anything."""

import json
import unicodedata
from typing import Any, TextIO

JOINERS = "\u200c\u200d"  # of Persian, of Hindi, of emoji; Python calls them not printable


def counted(number: int, noun: str, plural: str = "") -> str:
    """``1 image``, ``2 images``, ``1,440 images``; ``plural`` where it is not the noun with an s.

    Example:
        >>> counted(1, "image"), counted(1440, "image"), counted(2, "class", "classes")
        ('1 image', '1,440 images', '2 classes')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def printable(text: str) -> str:
    r"""A text as one line that steers no terminal: line breaks, control characters and the like as escapes.

    Example:
        >>> printable("two\nlines")
        'two\\nlines'
    """
    return text if text.isprintable() else "".join(c if _shown(c) else repr(c)[1:-1] for c in text)


def tell(*lines: str, file: TextIO | None = None, flush: bool = False) -> None:
    """Print lines, each :func:`printable`, to standard output or another stream. All text from files goes this way.

    Example:
        >>> tell("epoch 1", "epoch 2")
        epoch 1
        epoch 2
    """
    if lines:
        print("\n".join(map(printable, lines)), file=file, flush=flush)


def as_json(value: Any) -> str:
    """One line of JSON in which letters of every language are themselves, and what a terminal acts on is an escape.

    Example:
        >>> as_json({"größe": 3})
        '{"größe": 3}'
    """
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else "".join(c if _shown(c) else json.dumps(c)[1:-1] for c in text)


def _shown(letter: str) -> bool:
    return letter.isprintable() or letter in JOINERS or unicodedata.category(letter) == "Zs"


def shown(value: Any, most: int = 80) -> str:
    """A value as Python writes it, in one line of a message whatever it is.

    Example:
        >>> shown([0] * 100, 10)
        '[0, 0, 0, ...'
    """
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply; more digits than Python writes
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= most else f"{text[:most]}..."
