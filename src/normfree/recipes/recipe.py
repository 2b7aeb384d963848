"""A recipe: every number of a training run, in one YAML file."""

import copy
import dataclasses
import difflib
import json
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import docstring_parser
import jsonargparse
import yaml

from ..data import DataConfig
from ..errors import UsageError
from ..models.config import ModelConfig
from ..optim import OptimConfig
from ..tasks import TaskConfig
from ..training import TrainConfig

DEFAULT = "digits"


@dataclass
class Recipe:
    """Sections of a recipe.

    Args:
        model: which network
        data: which images, and how they reach the network
        task: what it is trained for
        optim: optimizer, clipping, schedule and averaging
        train: how long, how, and where
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    @classmethod
    def from_dict(cls, content: Any, source: str) -> "Recipe":
        """A recipe from nested dicts, checked.

        Raises:
            UsageError: unknown field (the nearest one is suggested), wrong type or value out of range, by dotted path;
                ``source`` says where the dicts are from.
        """
        content = _without_empty_sections(content)
        _check_fields(content, cls, "", source)
        _refuse_null(content)
        # The parser builds any object that a free-form value names by class_path; options are plain data.
        options = content.get("model", {}).get("options", {})
        if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
            raise UsageError(f"model.options (={options!r}) must be a mapping")
        if "model" in content:
            content = {**content, "model": {k: v for k, v in content["model"].items() if k != "options"}}
        try:
            parser = _parser()
            recipe = cls(**vars(parser.instantiate(parser.parse_object(content))))
            recipe.model.options = copy.deepcopy(options)
            return recipe
        except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(_one_line(str(error), content)) from error


def list_recipes() -> list[str]:
    """Names of the recipes that come with normfree."""
    return sorted(file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name.endswith(".yaml"))


def recipe_header(name: str) -> list[str]:
    """The comment at the top of a recipe, without its marks: paper, table, command, cost, expected result."""
    lines = recipe_text(name).splitlines()
    head = lines[: next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))]
    return [line.removeprefix("#").strip() for line in head]


def recipe_text(name: str) -> str:
    """The YAML of a recipe that comes with normfree, or of a file.

    Raises:
        UsageError: neither a recipe nor a file (the nearest names are suggested).
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        try:
            return Path(name).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"recipe file {name} cannot be read: {getattr(error, 'strerror', None) or error}"
            ) from error
    if name not in list_recipes():
        near = difflib.get_close_matches(name, list_recipes(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "`normfree recipes` lists them"
        raise UsageError(f"recipe {name!r} is unknown; {hint}")
    return (_folder() / f"{name}.yaml").read_text()


def load_recipe(name: str = DEFAULT, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe by name or YAML file, with fields overridden by dotted path.

    Args:
        overrides: for example ``{"optim.lr": 0.2}``.

    Raises:
        UsageError: unknown recipe, broken YAML (with the line), unknown field (the nearest one is suggested), or a
            value of the wrong type or out of range; each with the dotted path.
    """
    text = recipe_text(name)
    try:
        content = yaml.safe_load(text)
        json.dumps(content, default=str, skipkeys=True)  # refuses what contains itself
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date of month 13 is a ValueError
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UsageError(f"recipe {name} is not YAML{where}: {reason}") from error
    content = {} if content is None else _without_empty_sections(content)
    _check_fields(content, Recipe, "", f"recipe {name}")
    for path, value in (overrides or {}).items():
        set_field(content, path, value)
    return Recipe.from_dict(content, f"recipe {name}")


def set_field(content: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted path in a recipe's nested dicts.

    Raises:
        UsageError: there is no such field; the nearest one is suggested.
    """
    names = path.split(".")
    nested: Any = value
    for name in reversed(names):
        nested = {name: nested}
    _check_fields(nested, Recipe, "", f"--{path}")
    for name in names[:-1]:
        if not isinstance(content.get(name), dict):
            content[name] = {}
        content = content[name]
    if isinstance(value, dict) and isinstance(content.get(names[-1]), dict):
        content[names[-1]] = {**content[names[-1]], **value}
    else:
        content[names[-1]] = value


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML; :func:`load_recipe` reads it back to an equal one."""
    content = dataclasses.asdict(recipe)
    for section in content.values():
        section.update({k: list(v) for k, v in section.items() if isinstance(v, tuple)})
    return yaml.safe_dump(content, sort_keys=False)


def field_paths(cls: type = Recipe, prefix: str = "") -> dict[str, dataclasses.Field]:
    """Dotted path of every field of a recipe, sections left out."""
    paths: dict[str, dataclasses.Field] = {}
    for item in dataclasses.fields(cls):
        if dataclasses.is_dataclass(item.type):
            paths |= field_paths(item.type, f"{prefix}{item.name}.")
        else:
            paths[prefix + item.name] = item
    return paths


def field_help(cls: type = Recipe, prefix: str = "") -> dict[str, str]:
    """Dotted path of every field to its sentence in the docstring of its section."""
    sentences = {
        p.arg_name: " ".join((p.description or "").split()) for p in docstring_parser.parse(cls.__doc__).params
    }
    found: dict[str, str] = {}
    for item in dataclasses.fields(cls):
        if dataclasses.is_dataclass(item.type):
            found |= field_help(item.type, f"{prefix}{item.name}.")
        else:
            found[prefix + item.name] = sentences[item.name]
    return found


def _parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False, default_env=False)
    parser.add_class_arguments(Recipe)
    return parser


def _one_line(message: str, content: Mapping[str, Any]) -> str:
    """jsonargparse's message of several lines as: path, value, what would be right."""
    found = re.search(r'[Pp]arser key "([\w.]+)"', message)
    if not found or found[1] not in field_paths():
        return " ".join(message.split())
    path, value = found[1], content
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else value
    return f"{path} (={value!r}) must be {describe_type(field_paths()[path].type)}"


def describe_type(annotation: Any) -> str:
    """A type in the words of YAML: "a number or null", "one of distorted, shift, none"."""
    simple = {int: "an integer", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    if annotation in simple:
        return simple[annotation]
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin is tuple:
        return f"a list (each entry {describe_type(args[0])})"
    if origin is dict:
        return "a mapping"
    return " or ".join(describe_type(arg) for arg in args)


def _check_fields(content: Any, cls: type, prefix: str, source: str) -> None:
    """Every key must be a field; the error names its dotted path and the nearest field."""
    if not isinstance(content, dict):
        where = f"section {prefix[:-1]}" if prefix else "the file"
        raise UsageError(f"{source}: {where} (={content!r}) must be a mapping of fields")
    fields = {item.name: item for item in dataclasses.fields(cls)}
    for key, value in content.items():
        if key not in fields:
            raise UsageError(f"{source}: field {prefix}{key} is unknown; {_nearest(f'{prefix}{key}', prefix, fields)}")
        if dataclasses.is_dataclass(fields[key].type):
            _check_fields(value, fields[key].type, f"{prefix}{key}.", source)


def _without_empty_sections(content: Any) -> Any:
    """A section whose every line is a comment is null in YAML."""
    if not isinstance(content, dict):
        return content
    sections = {item.name for item in dataclasses.fields(Recipe)}
    return {key: value for key, value in content.items() if value is not None or key not in sections}


def _refuse_null(content: Mapping[str, Any]) -> None:
    """The parser lets null pass for every type."""
    for path, item in field_paths().items():
        section, name = path.split(".")
        if content.get(section, {}).get(name, "") is None and type(None) not in typing.get_args(item.type):
            raise UsageError(f"{path} (=null) must be {describe_type(item.type)}")


def _nearest(path: str, prefix: str, fields: Sequence[str] | Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(path, [prefix + name for name in fields], n=3, cutoff=0.7)
    last = path.rsplit(".", 1)[-1]
    near += [p for p in field_paths() if p.rsplit(".", 1)[-1] == last and p not in near]
    if near:
        return f"did you mean {' or '.join(near[:3])}?"
    return f"fields there are {', '.join(fields)}"


def _folder() -> Any:
    return resources.files(__package__)
