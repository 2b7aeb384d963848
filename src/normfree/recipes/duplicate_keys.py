"""Refuses keys that a recipe has twice: YAML would silently take the later one."""

import yaml

from ..errors import UsageError
from ..models.options import shown


def refuse_repeated(text: str, source: str) -> None:
    """Refuse a mapping with two entries of one key.

    Args:
        text: a YAML document that can be read.

    Raises:
        UsageError: a key is there twice; the message has both lines, and ``source`` names the document.
    """
    rest, seen = [yaml.compose(text, yaml.SafeLoader)], set[int]()
    while rest:
        node = rest.pop()
        if not isinstance(node, yaml.CollectionNode) or id(node) in seen:  # an alias is the node itself
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            rest += node.value
            continue
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            rest += [key, value]
            if not isinstance(key, yaml.ScalarNode):
                continue
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                where = f"in lines {lines[name]} and {line}" if lines[name] != line else f"in line {line}"
                raise UsageError(f"{source} has {shown(key.value, 60)} twice, {where}; leave one of them out")
            lines[name] = line
