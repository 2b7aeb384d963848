"""Reads YAML documents safely: sizes are checked first, since a few lines of aliases can mean billions of values."""

from typing import Any

import yaml

from ..errors import UsageError
from ..limits import MAX_DIGITS, MAX_RECIPE_LENGTH, MAX_RECIPE_VALUES

_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_MAX_KEY_DIGITS = 18  # longer keys can be chosen to have the same hash, which makes dicts slow


class _Refused(Exception):
    """Reading the document would take far too much time or memory."""


class _Loader(yaml.SafeLoader):
    """Counts the document's values, aliases at each use, before merge keys copy anything."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _count_values(node, {})
        return node


def load_yaml(text: str, source: str) -> Any:
    """The content of a YAML document as dicts, lists, text and numbers.

    Raises:
        UsageError: the text is not YAML (with the line) or far too large; ``source`` names it in the message.
    """
    if len(text) > MAX_RECIPE_LENGTH:
        raise UsageError(f"{source} has more than {MAX_RECIPE_LENGTH:,} letters")
    try:
        content = yaml.load(text, _Loader)  # a safe loader
    except _Refused as error:
        raise UsageError(f"{source} holds {error}") from error
    except Exception as error:  # PyYAML lets most kinds through: a date of month 13, !!bool x, !!int ''
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error)[:300].split()) or type(error).__name__
        raise UsageError(f"{source} is not YAML{where}: {reason}") from error
    check_length(content, source)
    return content


def check_length(content: Any, source: str) -> None:
    """Refuse data of more than MAX_RECIPE_VALUES values; shared ones count at each use.

    Raises:
        UsageError: there are more; ``source`` names the data in the message.
    """
    pending, count = [content], 0
    while pending:
        value, count = pending.pop(), count + 1
        if count > MAX_RECIPE_VALUES:
            raise UsageError(f"{source} holds more than {MAX_RECIPE_VALUES:,} values")
        if isinstance(value, dict):
            pending += [*value, *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            pending += value


def _count_values(node: yaml.Node, sizes: dict[int, int | None]) -> int:
    """The number of values in a node; aliases and merge keys count as what they refer to.

    Args:
        sizes: number of values by node; None for the nodes that contain this one.
    """
    if id(node) in sizes:
        size = sizes[id(node)]
        if size is None:
            raise _Refused("a value that contains itself")
        return size
    sizes[id(node)] = None
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
        if any(key.tag in _NUMBERS and len(key.value) > _MAX_KEY_DIGITS for key, _ in node.value):
            raise _Refused(f"a key of more than {_MAX_KEY_DIGITS} digits")
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    elif node.tag in _NUMBERS and len(node.value) > MAX_DIGITS:
        raise _Refused(f"a number of more than {MAX_DIGITS:,} digits")
    sizes[id(node)] = size = 1 + sum(_count_values(part, sizes) for part in parts)
    if size > MAX_RECIPE_VALUES:
        raise _Refused(f"more than {MAX_RECIPE_VALUES:,} values")
    return size
