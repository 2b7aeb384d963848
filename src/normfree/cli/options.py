"""Recipe fields on the command line: ``--optim.lr 0.2`` or ``--optim.lr=0.2``."""

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any

import yaml

from ..errors import UsageError, listed
from ..recipes import describe_field, describe_type, field_help, field_paths, nearest_fields
from ..recipes.safe_yaml import load_yaml
from ..recipes.task import DETECTION

# what fields are for: title, the section whose other fields stand there, and fields by name
GROUPS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "network": ("model", ()),
    "images": ("data", ()),
    "augmentation": (
        None,
        tuple(
            f"data.{name}"
            for name in (
                *("crop", "scale", "color", "flip", "mixup", "cutmix"),
                *("randaugment_layers", "randaugment_magnitude", "randaugment_ops", "autoaugment"),
            )
        ),
    ),
    "task": ("task", ()),
    "length and batch": (
        None,
        tuple(
            f"train.{name}"
            for name in ("epochs", "steps", "batch_size", "across_epochs", "micro_batch", "patience", "eval_every")
        ),
    ),
    "learning rate": (
        None,
        tuple(
            f"optim.{name}"
            for name in (
                *("lr", "lr_reference_batch", "lr_end", "lr_drops", "lr_decay", "lr_decay_epochs"),
                *("warmup_epochs", "warmup_steps", "restarts"),
            )
        ),
    ),
    "optimizer": ("optim", ()),
    "memory, speed, files": ("train", ()),
    "privacy": ("private", ()),
    "detection alone": (None, tuple(f"task.{name}" for name in DETECTION)),
}


def parse_overrides(arguments: Sequence[str], words: list[str] | None = None) -> dict[str, Any]:
    """Dotted path to value; values are YAML (numbers, true, null, [1, 2], text). A list may be without brackets.

    Args:
        words: collects arguments that are neither options nor values; None: there must be none.

    Raises:
        UsageError: not an option, an option without a value, or unknown (the nearest one is suggested).
    """
    overrides: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        option = rest.pop(0)
        if not option.startswith("--") and words is not None:
            words.append(option)
            continue
        if not option.startswith("--"):
            raise UsageError(f"argument {option!r} is unexpected; options look like --optim.lr 0.2")
        name, equals, text = option[2:].partition("=")
        if not any(name == known or name.startswith(f"{known}.") for known in field_paths()):
            raise UsageError(f"option --{name} is unknown; {_nearest(name)}")
        if not equals:
            if not rest or (rest[0].startswith("--")):
                raise UsageError(f"option --{name} needs a value")
            text = rest.pop(0)
        overrides[name] = parse_value(text, f"--{name}", name)
    return overrides


def parse_value(text: str, option: str, path: str) -> Any:
    """The value of a field in YAML; what is not YAML is text, and for a list "1, 2" is [1, 2]."""
    try:
        value = load_yaml(text, option)
        if isinstance(value, str) and "," in value and "a list" in describe_type(field_paths()[path].type):
            value = load_yaml(f"[{text}]", option)
        return value
    except (UsageError, KeyError):  # a key: an option of the model, which is whatever it is
        return text


def fields_help() -> str:
    """Recipe fields by use, with type, default and meaning, for --help."""
    every, meanings, lines = field_paths(), field_help(), []
    for title, paths in grouped(list(every)).items():
        lines.append(f"\n{title}:")
        for path in paths:
            lines.append(f"  --{path}  ({describe_field(every[path])}; {_default(every[path])})")
            lines += textwrap.wrap(meanings[path], 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def grouped(paths: Sequence[str]) -> dict[str, list[str]]:
    """Fields by what they are used for, each once; those that no group names stand with their section."""
    named = {path: title for title, (_, some) in GROUPS.items() for path in some}
    sections = {section: title for title, (section, _) in GROUPS.items() if section}
    found: dict[str, list[str]] = {title: [] for title in GROUPS}
    for path in paths:
        section = path.split(".")[0]
        found.setdefault(named.get(path) or sections.get(section, section), []).append(path)
    return {title: some for title, some in found.items() if some}


def _default(item: dataclasses.Field[Any]) -> str:
    factory = item.default_factory
    value = item.default if factory is dataclasses.MISSING else factory()
    if isinstance(value, tuple):
        value = list(value)
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def _nearest(name: str) -> str:
    known = [*field_paths(), "data", "model", "recipe", "out", "init", "quiet", "traceback"]
    known += ["epochs", "lr", "batch-size", "micro-batch", "resume", "warm-restart"]
    near = nearest_fields(name, known)
    return f"did you mean {listed([f'--{n}' for n in near])}?" if near else "see normfree train --help"
