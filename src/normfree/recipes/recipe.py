"""A recipe: every number of a training run, in one YAML file."""

import copy
import dataclasses
import functools
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import docstring_parser
import jsonargparse
import yaml

from ..data import DataConfig
from ..errors import UsageError, did_you_mean, listed, nearest
from ..files import regular
from ..limits import MAX_RECIPE_LENGTH
from ..models.config import ModelConfig
from ..optim import OptimConfig
from ..private import PrivateConfig
from ..training import TrainConfig
from ..words import shown
from .decide import CLOSED_BY, open_fields, without_sizes
from .duplicate_keys import refuse_repeated
from .earlier import is_run_recipe, with_earlier_defaults
from .override import check_exact, check_import, resolve_overrides
from .safe_yaml import check_length, load_yaml
from .task import TaskConfig

DEFAULT = "digits"


@dataclass
class Recipe:
    """Sections of a recipe.

    Args:
        model: which network
        data: which images, and how they are prepared for the network
        task: what the network is trained for
        optim: optimizer, clipping, schedule and averaging
        train: how long, how, and where
        private: what the run may tell about single images
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    private: PrivateConfig = field(default_factory=PrivateConfig)

    @classmethod
    def from_dict(cls, content: Any, source: str) -> "Recipe":
        """A recipe from nested dicts, checked.

        Args:
            content: section to field to value.
            source: where the dicts come from, for messages.

        Raises:
            UsageError: a field is unknown (the nearest one is suggested), or a value is of the wrong type or out of
                range; the message has the dotted path.
        """
        check_length(content, source)
        content = _without_empty_sections(content)
        _check_fields(content, cls, "", source)
        _refuse_values(content)
        # The parser would build any object that a free-form value names by class_path; so options bypass it.
        options = content.get("model", {}).get("options", {})
        if not isinstance(options, dict):
            raise UsageError(f"model.options (={shown(options)}) must be a mapping")
        if "model" in content:
            content = {**content, "model": {k: v for k, v in content["model"].items() if k != "options"}}
        try:
            options = _plain_data(options)
            parser = _parser()
            recipe = cls(**vars(parser.instantiate(parser.parse_object(content))))
        except (jsonargparse.ArgumentError, TypeError, ValueError, ArithmeticError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(_one_line(str(error), content)) from error
        except RecursionError as error:
            raise UsageError(f"{source}: a value is nested too deeply") from error
        recipe.model.options = options
        recipe.data.decides = open_fields(recipe.data.decides, content)
        if recipe.optim.name != "sgd" and "optim.lr" in recipe.data.decides:
            raise UsageError(
                f"optim.lr must be given with optim.name (={recipe.optim.name}): the rule of data.decides is for sgd"
            )
        return recipe


def describe(recipe: Recipe, classes: list[str], numbers: list[int] | None = None) -> dict[str, Any]:
    """What a checkpoint stores about its network, so that the file can be used without the run folder.

    Args:
        classes: names of the classes.
        numbers: see :class:`.data.Source`.
    """
    description = dict(recipe=dataclasses.asdict(recipe), classes=classes)
    return description if numbers is None else description | dict(numbers=numbers)


def list_recipes() -> list[str]:
    """Names of the recipes that come with normfree."""
    return sorted(file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name.endswith(".yaml"))


def recipe_header(name: str) -> list[str]:
    """The lines of the comment at the top of a recipe: paper, table, command, cost, expected result."""
    lines = recipe_text(name).splitlines()
    head = lines[: next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))]
    return [line.removeprefix("#").strip() for line in head]


def recipe_text(name: str) -> str:
    """The YAML text of a recipe that comes with normfree, or of a file.

    Raises:
        UsageError: ``name`` is neither a recipe (the nearest names are suggested) nor a file that can be read.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        try:
            with regular(Path(name)).open(encoding="utf-8") as file:
                return file.read(MAX_RECIPE_LENGTH + 1)  # load_yaml refuses a longer text
        except (OSError, ValueError) as error:
            raise UsageError(
                f"recipe file {_printable(name)} cannot be read: {getattr(error, 'strerror', None) or error}"
            ) from error
    if name not in list_recipes():
        hint = did_you_mean(name, list_recipes(), "`normfree recipes` lists them")
        raise UsageError(f"recipe {shown(name)} is unknown; {hint}")
    return (_folder() / f"{name}.yaml").read_text()


def load_recipe(
    name: str = DEFAULT,
    overrides: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Recipe:
    """A recipe by name or YAML file, with fields overridden by dotted path.

    In the recipe of a run folder, fields that its version did not have get the values that this version used.

    Args:
        overrides: for example ``{"optim.lr": 0.2}``.
        say: called with a message about each field that the overrides unset, see :func:`.override.resolve_overrides`.

    Raises:
        UsageError: unknown recipe, broken YAML (with the line), unknown field (the nearest one is suggested), or a
            value of the wrong type or out of range; each with the dotted path.
    """
    text, source = recipe_text(name), f"recipe {_printable(name)}"
    content = load_yaml(text, source)
    refuse_repeated(text, source)
    content = {} if content is None else _without_empty_sections(content)
    _check_fields(content, Recipe, "", source)
    content = with_earlier_defaults(content) if is_run_recipe(name) else content
    if not is_run_recipe(name):  # reading a run imports nothing; training from one is refused where it starts
        check_import((content.get("optim") or {}).get("name"), overrides or {}, source)
    original = copy.deepcopy(content)
    resolved, messages = resolve_overrides(content, overrides or {})
    for path, value in resolved.items():
        set_field(content, path, value)
    recipe = Recipe.from_dict(content, source)
    if recipe.model.name != (original.get("model") or {}).get("name"):  # the size of images is that network's
        recipe.data.decides = without_sizes(recipe.data.decides)
    check_exact(recipe, original, overrides or {})
    for message in messages:
        say(message)
    return recipe


def set_field(content: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted path in a recipe's nested dicts. A mapping is merged into the present one; null removes an entry.

    Raises:
        UsageError: there is no such field; the nearest one is suggested.
    """
    names = path_names(path)
    nested: Any = value
    for name in reversed(names):
        nested = {name: nested}
    _check_fields(nested, Recipe, "", f"--{path}")
    for name in names[:-1]:
        if not isinstance(content.get(name), dict):
            content[name] = {}
        content = content[name]
    if isinstance(value, dict):
        present = content.get(names[-1])
        merged = {**(present if isinstance(present, dict) else {}), **value}
        value = {name: entry for name, entry in merged.items() if entry is not None}
    if value is None and len(names) > 2:
        content.pop(names[-1], None)
    else:
        content[names[-1]] = value


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, without fields that are open; :func:`load_recipe` reads it back to an equal one."""
    content = dataclasses.asdict(recipe)
    for path in recipe.data.decides:
        for name in (path, *CLOSED_BY.get(path, ())):
            section, _, field_name = name.partition(".")
            content[section].pop(field_name, None)
    for section in content.values():
        section.update({k: list(v) for k, v in section.items() if isinstance(v, tuple)})
    return yaml.safe_dump(content, sort_keys=False)


def field_paths(cls: type = Recipe, prefix: str = "") -> dict[str, dataclasses.Field[Any]]:
    """Every field of a recipe by its dotted path; sections are not among them."""
    paths: dict[str, dataclasses.Field[Any]] = {}
    for item in dataclasses.fields(cls):
        if section := _section(item):
            paths |= field_paths(section, f"{prefix}{item.name}.")
        else:
            paths[prefix + item.name] = item
    return paths


def path_names(path: str) -> list[str]:
    """The names in a dotted path, of which the key of a mapping of plain values is one, dots included.

    >>> path_names("optim.clipping_parts.stages.0")
    ['optim', 'clipping_parts', 'stages.0']
    """
    for known, item in field_paths().items():
        if path.startswith(f"{known}.") and typing.get_origin(item.type) is dict and item.type != dict[str, Any]:
            return [*known.split("."), path.removeprefix(f"{known}.")]
    return path.split(".")


def field_help(cls: type = Recipe, prefix: str = "") -> dict[str, str]:
    """The description of every field in the docstring of its section, by dotted path."""
    sentences = {
        p.arg_name: " ".join((p.description or "").split()) for p in docstring_parser.parse(cls.__doc__).params
    }
    texts: dict[str, str] = {}
    for item in dataclasses.fields(cls):
        if section := _section(item):
            texts |= field_help(section, f"{prefix}{item.name}.")
        else:
            texts[prefix + item.name] = sentences[item.name]
    return texts


@functools.cache
def _parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False, default_env=False)
    parser.add_class_arguments(Recipe)
    return parser


def _one_line(message: str, content: Mapping[str, Any]) -> str:
    """jsonargparse's message of several lines as one line: path, value, and the expected type."""
    match, fields = re.search(r'[Pp]arser key "([\w.]+)"', message), field_paths()
    if not match or match[1] not in fields:
        return " ".join(message[:500].split())
    path, value = match[1], content
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else value
    return f"{path} (={shown(value)}) must be {describe_field(fields[path])}"


def describe_field(item: dataclasses.Field[Any]) -> str:
    """What a field must be, in words: one of its names, or a value of its type."""
    choices = item.metadata.get("one_of")
    return f"one of {', '.join(choices)}" if choices else describe_type(item.type)


def describe_type(annotation: Any) -> str:
    """A type in words for users of YAML, such as "a number or null" or "one of distorted, shift, none"."""
    simple = {int: "an integer", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    if annotation in simple:
        return simple[annotation]
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin is tuple:
        return f"a list (each entry {describe_type(args[0])})"
    if origin is dict:
        return "a mapping" if args[1] is Any else f"a mapping (each {describe_type(args[1])})"
    return " or ".join(describe_type(arg) for arg in args)


def _check_fields(content: Any, cls: type, prefix: str, source: str) -> None:
    """Every key must be a field; the error names its dotted path and the nearest field."""
    if not isinstance(content, dict):
        where = f"section {prefix[:-1]}" if prefix else "the file"
        raise UsageError(f"{source}: {where} (={shown(content)}) must be a mapping of fields")
    fields = {item.name: item for item in dataclasses.fields(cls)}
    for key, value in content.items():
        if key not in fields:
            path = prefix + _printable(key)
            near = nearest_fields(path, [prefix + name for name in fields])
            hint = f"did you mean {listed(near)}?" if near else f"fields there are {', '.join(fields)}"
            raise UsageError(f"{source}: field {path} is unknown; {hint}")
        if section := _section(fields[key]):
            _check_fields(value, section, f"{prefix}{key}.", source)


def _section(item: dataclasses.Field[Any]) -> type | None:
    """The class of a field that is a section; None for a value."""
    return item.type if isinstance(item.type, type) and dataclasses.is_dataclass(item.type) else None


def _printable(name: Any) -> str:
    """A name for a message of one line; quoted if it is long or not printable."""
    return name if isinstance(name, str) and len(name) <= 255 and name.isprintable() else shown(name)


def _without_empty_sections(content: Any) -> Any:
    """The content without sections that are null, as in YAML if all their lines are comments."""
    if not isinstance(content, dict):
        return content
    sections = {item.name for item in dataclasses.fields(Recipe)}
    return {key: value for key, value in content.items() if value is not None or key not in sections}


def _refuse_values(content: Mapping[str, Any]) -> None:
    """Refuse what the parser accepts by mistake: null for every type, and integers of 2**63 and more."""
    for path, item in field_paths().items():
        section, name = path.split(".")
        value, wanted = content.get(section, {}).get(name, ""), describe_field(item)
        if value is None and type(None) not in typing.get_args(item.type):
            raise UsageError(f"{path} (=null) must be {wanted}")
        entries = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(entry, int) and abs(entry) >= 2**63 for entry in entries) and re.search(
            "integer|number", wanted
        ):
            raise UsageError(f"{path} (={shown(value)}) must be below 2**63")


def _plain_data(value: Any) -> Any:
    """A copy of a free-form value, with tuples as lists; refuses what a YAML or JSON file cannot hold."""
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain_data(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_data(inner) for inner in value]
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float) and abs(value) < 2**63:
        return value
    raise UsageError(f"model.options: {shown(value)} must be a finite number, text, a list, or a mapping by text")


def nearest_fields(path: str, known: Iterable[str]) -> list[str]:
    """Up to three known paths that are similar to an unknown one, or have the same last part."""
    near, last = nearest(path, known, cutoff=0.7, parts=False), path.lower().rpartition(".")[2]
    near += [p for p in field_paths() if p.rpartition(".")[2].lower() == last and p not in near]
    return near[:3]


def _folder() -> Any:
    return resources.files("normfree.recipes")
