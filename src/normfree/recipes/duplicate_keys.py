"""Refuses duplicate keys in a recipe, of which YAML would silently use the last one."""

import yaml

from ..errors import UsageError
from ..models.options import shown


def refuse_repeated(text: str, source: str) -> None:
    """Refuse a mapping that has a key twice.

    Args:
        text: a valid YAML document.

    Raises:
        UsageError: a key is there twice; the message names both lines and ``source``.
    """
    pending, seen = [yaml.compose(text, yaml.SafeLoader)], set[int]()
    while pending:
        node = pending.pop()
        if not isinstance(node, yaml.CollectionNode) or id(node) in seen:  # an alias is the node itself
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            pending += node.value
            continue
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            pending += [key, value]
            if not isinstance(key, yaml.ScalarNode):
                continue
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                where = f"in lines {lines[name]} and {line}" if lines[name] != line else f"in line {line}"
                raise UsageError(f"{source} has {shown(key.value, 60)} twice, {where}; leave one of them out")
            lines[name] = line
