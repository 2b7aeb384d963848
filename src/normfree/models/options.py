"""Checking options of a family's class: their types and bounds."""

import inspect
import numbers
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

from ..errors import UsageError
from ..words import shown

MAX_SIZE = 65_536  # of widths, depths and group widths; the papers' largest are 3072, 50 and 128
MAX_ABS = 1e6  # from zero, of numbers such as alpha
MAX_TEXT = 100  # letters of a name
_ABOVE_0, _NOT_BELOW_0 = ("ratio", "first_ratio", "se_ratio", "final_factor"), ("init_gain", "classifier_std")


def check_options(cls: type, options: Mapping[str, Any], prefix: str = "option ") -> None:
    """Compare options of a family's class with the types that its constructor declares; unknown names are ignored.

    Args:
        prefix: text before an option's name in messages.

    Raises:
        UsageError: a value of another type, or out of range.
    """
    declared = inspect.signature(cls.__init__).parameters
    for key, value in options.items():
        expected = _type_mismatch(declared[key].annotation, value) if key in declared else None
        if expected is None:
            found = (_out_of_range(key, item) for item in _items(value) if _is_number(item))
            expected = next(filter(None, found), None)
        if expected is not None:
            raise UsageError(f"{prefix}{key} (={shown(value)}) must be {expected}")


def _type_mismatch(hint: Any, value: Any) -> str | None:
    """The type that a value should have, in words; None if it has it."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if type(None) in args:
        if value is None:
            return None
        expected = _type_mismatch(typing.Union[tuple(a for a in args if a is not type(None))], value)  # noqa: UP007
        return expected and f"{expected}, or null"
    if any(typing.get_origin(hinted) is Sequence for hinted in args):  # one value, or one for each stage
        (one,) = (hinted for hinted in args if typing.get_origin(hinted) is not Sequence)
        mismatches = (_type_mismatch(one, item) for item in _items(value) or [None])  # an empty list is wrong, too
        expected = next(filter(None, mismatches), None)
        return expected and f"{expected}, or a list of them"
    if origin is typing.Literal:
        fits = any(type(value) is type(choice) and value == choice for choice in args)
        return None if fits else f"one of {', '.join(map(str, args))}"
    if hint is bool:
        return None if isinstance(value, bool) else "true or false"
    if hint is int:
        return None if _is_size(value) else f"an integer of 1 to {MAX_SIZE:,}"
    if hint is float:
        return None if _is_moderate(value) else f"a number between -{MAX_ABS:g} and {MAX_ABS:g}{_yaml_hint(value)}"
    if origin is Sequence:
        fits = isinstance(value, Sequence) and not isinstance(value, str | bytes) and all(map(_is_size, value))
        return None if fits and len(value) else f"a list of integers of 1 to {MAX_SIZE:,}"
    if hint is str or str in args:
        fits = (isinstance(value, str) and len(value) <= MAX_TEXT) or (hint is not str and isinstance(value, Callable))
        return None if fits else f"text of at most {MAX_TEXT} letters"
    return None


def _items(value: Any) -> list[Any]:
    """The items of a list; of anything else, itself."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]


def _out_of_range(key: str, value: float) -> str | None:
    if key in _ABOVE_0 and value <= 0:
        return "above 0"
    return "at least 0" if key in _NOT_BELOW_0 and value < 0 else None


def _is_size(value: Any) -> bool:
    return _is_number(value) and isinstance(value, numbers.Integral) and 1 <= value <= MAX_SIZE


def _is_moderate(value: Any) -> bool:
    return _is_number(value) and -MAX_ABS <= value <= MAX_ABS


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _yaml_hint(value: Any) -> str:
    """YAML takes 1e-3 for text."""
    plain = isinstance(value, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value)
    return "; YAML wants a point in it, as in 1.0e-3" if plain else ""
