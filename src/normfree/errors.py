"""The two ways a call can fail that are not a bug of normfree, and what was probably meant."""

import difflib
import math
import os
from collections.abc import Iterable
from numbers import Real

MAX_GUESSED_LENGTH = 100  # letters of a name that is worth a guess


class UsageError(ValueError):
    """Input that cannot be used as given; the message names it, its value, and what would be right."""


def check_count(name: str, value: object) -> None:
    """Refuse what is not an integer of at least 1.

    Example:
        >>> check_count("groups", 0)
        Traceback (most recent call last):
            ...
        normfree.errors.UsageError: groups (=0) must be an integer of at least 1
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{name} (={value!r}) must be an integer of at least 1")


def check_finite(name: str, value: object) -> None:
    """Refuse what is not a finite number.

    Example:
        >>> check_finite("alpha", float("nan"))
        Traceback (most recent call last):
            ...
        normfree.errors.UsageError: alpha (=nan) must be a finite number
    """
    if not isinstance(value, Real) or not math.isfinite(value):
        raise UsageError(f"{name} (={value!r}) must be a finite number")


def check_utf8(path: str | os.PathLike[str], flag: str = "") -> None:
    """Refuse a name of a file that is no UTF-8: libraries in C++ cannot open it, and one ends the process.

    Args:
        flag: the option that gave it, and a space.

    Example:
        >>> check_utf8("image.png")
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{flag}{path} is no name in UTF-8; give the file or folder another one") from error


class RunFailed(RuntimeError):
    """A run that started and could not go on; the message says why, at which step, and what is kept."""


class NotFinite(RunFailed):
    """A loss or a gradient that is not finite; parameters, momentum and averages are as before the step."""


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6, parts: bool = True) -> list[str]:
    """The three known names that are most like another one, best first, whatever their case.

    There are fewer where less than ``cutoff`` of the letters agree. With ``parts``, names that contain the other one
    come first.

    Example:
        >>> nearest("nfnet_f", ["nfnet_f0", "nfnet_f1", "nf_resnet50"])
        ['nfnet_f0', 'nfnet_f1']
    """
    word = str(name).lower()
    if not 0 < len(word) <= MAX_GUESSED_LENGTH:
        return []
    likeness = {one: difflib.SequenceMatcher(None, word, one.lower()).ratio() for one in known}
    containing = {one for one in likeness if parts and len(word) > 1 and word in one.lower()}
    like = [one for one, ratio in likeness.items() if ratio >= cutoff or one in containing]
    return sorted(like, key=lambda one: (one not in containing, -likeness[one]))[:3]


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """The end of a message about an unknown name: ``did you mean a, b or c?``, or ``otherwise`` if none is near.

    Example:
        >>> did_you_mean("rulu", ["relu", "silu"], "see the list")
        'did you mean relu?'
    """
    near = nearest(name, known)
    return f"did you mean {listed(near)}?" if near else otherwise


def listed(names: list[str]) -> str:
    """``a, b or c``.

    Example:
        >>> listed(["a", "b", "c"])
        'a, b or c'
    """
    return " or ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
