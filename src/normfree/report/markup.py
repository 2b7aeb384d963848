"""HTML that is safe by construction: everything that :func:`tag` did not make is escaped as text."""

import html
import re
from typing import Any

VOID = {"br", "col", "img", "meta", "source"}  # elements without content
# control characters, surrogates (bytes of file names that are not UTF-8), and marks that change the text direction
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """HTML that needs no escaping."""

    __slots__ = ()


class Missing(str):
    """The reason why a part of the page is missing, in one line."""

    __slots__ = ()

    def __new__(cls, reason: object) -> "Missing":
        return super().__new__(cls, " ".join(str(reason).split()))


def text(value: Any) -> Markup:
    """A value as HTML: markup unchanged, everything else escaped; None becomes the empty string."""
    if isinstance(value, Markup):
        return value
    return Markup("" if value is None else html.escape(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", str(value))))


def join(*children: Any) -> Markup:
    """Children one after the other; the elements of lists, too."""
    return Markup("".join(join(*child) if isinstance(child, list) else text(child) for child in children))


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """One element.

    Args:
        children: see :func:`join`.
        attributes: an underscore at the end is dropped (``class_``), others become hyphens; None leaves one out.
    """
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    opening = "".join([f"<{name}", *(f' {key}="{text(value)}"' for key, value in given.items()), ">"])
    return Markup(opening if name in VOID else f"{opening}{join(*children)}</{name}>")


def missing(reason: str) -> Markup:
    """A line that says why a part of the page is missing."""
    return tag("p", Missing(reason), class_="missing")


def section(identity: str, title: str, *children: Any) -> Markup:
    """A section of the page with its heading."""
    return tag("section", tag("h2", title), *children, id=identity)
