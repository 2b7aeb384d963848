"""Recipe fields on the command line: ``--optim.lr 0.2`` or ``--optim.lr=0.2``."""

import textwrap
from collections.abc import Sequence
from typing import Any

from ..errors import UsageError, listed
from ..recipes import describe_type, field_help, field_paths, nearest_fields
from ..recipes.recipe import load_yaml


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Dotted path to value; values are YAML (numbers, true, null, [1, 2], text). A list may be without brackets.

    Raises:
        UsageError: not an option, an option without a value, or unknown (the nearest one is suggested).
    """
    overrides: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        option = rest.pop(0)
        if not option.startswith("--"):
            raise UsageError(f"argument {option!r} is unexpected; options look like --optim.lr 0.2")
        name, equals, text = option[2:].partition("=")
        if not any(name == known or name.startswith(f"{known}.") for known in field_paths()):
            raise UsageError(f"option --{name} is unknown; {_nearest(name)}")
        if not equals:
            if not rest or (rest[0].startswith("--")):
                raise UsageError(f"option --{name} needs a value")
            text = rest.pop(0)
        try:
            value = load_yaml(text, f"--{name}")
            if isinstance(value, str) and "," in value and "a list" in describe_type(field_paths()[name].type):
                value = load_yaml(f"[{text}]", f"--{name}")
            overrides[name] = value
        except (UsageError, KeyError):  # a key: an option of the model, which is whatever it is
            overrides[name] = text
    return overrides


def fields_help() -> str:
    """Recipe fields with type and meaning, for --help."""
    lines, section, meanings = [], "", field_help()
    for path, item in field_paths().items():
        if path.split(".")[0] != section:
            section = path.split(".")[0]
            lines.append(f"\n{section}:")
        lines.append(f"  --{path}  ({describe_type(item.type)})")
        lines += textwrap.wrap(meanings[path], 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _nearest(name: str) -> str:
    known = [*field_paths(), "data", "model", "recipe", "out", "init", "quiet", "traceback"]
    near = nearest_fields(name, known)
    return f"did you mean {listed([f'--{n}' for n in near])}?" if near else "see normfree train --help"
