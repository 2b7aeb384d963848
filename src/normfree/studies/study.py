"""A study: a recipe, what is varied in it, the seeds, and what is reported. Its file, and the ones that come along."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ..data.layouts import with_kind
from ..errors import UsageError, did_you_mean
from ..files import regular
from ..limits import MAX_RECIPE_LENGTH
from ..recipes import list_recipes, load_recipe
from ..recipes.duplicate_keys import refuse_repeated
from ..recipes.safe_yaml import load_yaml
from ..words import printable, shown
from .axes import Axis, check_field, check_keys, label, parse_axis
from .report import Report, dump_report, parse_report

PARTS = ("base", "set", "axes", "seeds", "skip", "report", "images", "classes", "init")
MERGED = ("set", "axes")  # of which a scale adds to what both scales share
SCALES = ("small", "paper")
MOST_SEEDS = 1000
EMBEDDED, PHOTOS = "digits", "folder"  # a source that needs no files, and the recipe for images of one's own
PHOTO_SIDE = 64  # px
SEED = "train.seed"
PLACE = re.compile(r"\{([^{}]*)\}")  # in ``init``, the name of an axis


@dataclass(frozen=True)
class Study:
    """What is run and reported.

    Attributes:
        name: of the study's file; scale: "small", "paper" or empty.
        base: the recipe, by name or file.
        settings: fields of every cell, by dotted path; axes: what is varied.
        given: fields of every cell that take precedence, of the command line.
        seeds: of the runs of each cell.
        skip: values of axes that are left out where they meet.
        reports: tables and plots.
        images, classes: of the training images, for the cost where they are not there.
        init: weights that each run starts from, as ``normfree train --init`` takes them; ``{AXIS}`` and ``{seed}``
            stand for the cell's own. Empty: none.
    """

    name: str
    scale: str
    base: str
    settings: Mapping[str, Any]
    axes: tuple[Axis, ...]
    given: Mapping[str, Any]
    seeds: tuple[int, ...]
    skip: tuple[Mapping[str, tuple[str, ...]], ...]
    reports: tuple[Report, ...]
    images: int | None = None
    classes: int | None = None
    init: str = ""

    @property
    def title(self) -> str:
        """Name and scale."""
        return f"{self.name} ({self.scale})" if self.scale else self.name


def list_studies() -> list[str]:
    """Names of the studies that come with normfree.

    >>> "batch_size" in list_studies()
    True
    """
    return sorted(file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name.endswith(".yaml"))


def study_header(name: str) -> list[str]:
    """The lines of the comment at the top of a study: what it shows, source, command, cost, expected result."""
    lines = study_text(name).splitlines()
    head = lines[: next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))]
    return [line.removeprefix("#").strip() for line in head]


def study_text(name: str) -> str:
    """The YAML text of a study that comes with normfree, or of a file.

    Raises:
        UsageError: ``name`` is neither a study (the nearest names are suggested) nor a file that can be read.
    """
    if _is_file(name):
        try:
            with regular(Path(name)).open(encoding="utf-8") as file:
                return file.read(MAX_RECIPE_LENGTH + 1)  # load_yaml refuses so many
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"study file {printable(name)} cannot be read: {reason}") from error
    if name not in list_studies():
        hint = did_you_mean(name, list_studies(), "`normfree study list` lists them")
        raise UsageError(f"study {shown(name)} is unknown; {hint}")
    return (_folder() / f"{name}.yaml").read_text(encoding="utf-8")


def load_study(
    name: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    scale: str | None = None,
    seeds: int | Sequence[int] | None = None,
    init: str | None = None,
) -> Study:
    """A study by name or YAML file.

    >>> study = load_study("batch_size", {"train.log_every": 1}, seeds=[0, 1])
    >>> study.scale, study.seeds, [axis.name for axis in study.axes]
    ('small', (0, 1), ['network', 'batch', 'optim.lr'])

    Args:
        overrides: fields of every cell by dotted path, such as ``{"train.epochs": 3}``.
        scale: "small" or "paper" of a file that has both; None: small.
        seeds: how many, or which; None: the file's.
        init: weights that each run starts from, see :class:`Study`; None: the file's.

    Raises:
        UsageError: unknown study, broken YAML (with the line), an unknown key, field or axis (the nearest one is
            suggested), or a field that is set twice.
    """
    text, source = study_text(name), f"study {printable(name)}"
    content = load_yaml(text, source)
    refuse_repeated(text, source)
    check_keys(content, (*PARTS, *SCALES), source)
    content, scale = _scaled(content, scale, source)
    axes = tuple(parse_axis(key, value, source) for key, value in _mapping(content, "axes", source, least=1).items())
    settings = _mapping(content, "set", source)
    given, chosen = dict(overrides or {}), _seeds(content.get("seeds", 1) if seeds is None else seeds, source)
    _check_set_once(settings, axes, given, source)
    base = _base(content.get("base"), name, source)
    reports = content.get("report", {})
    several = reports if isinstance(reports, list) else [reports]
    return Study(
        Path(name).stem if _is_file(name) else name,
        scale,
        base,
        _with_photos(settings, base, given),
        axes,
        given,
        chosen,
        tuple(_skipped(one, axes, f"{source}, skip") for one in _listed(content.get("skip"), f"{source}, skip")),
        tuple(parse_report(one, axes, len(chosen), f"{source}, report", fewer=seeds is not None) for one in several),
        *(_count(content.get(key), f"{source}, {key}") for key in ("images", "classes")),
        init=_init(content.get("init") if init is None else init, axes, source),
    )


def dump_study(study: Study) -> str:
    """A study as YAML, to be read by :func:`load_study`: what the command line said is in it."""
    axes = {
        axis.name: [value.fields[axis.name] for value in axis.values]
        if "." in axis.name
        else {value.name: dict(value.fields) for value in axis.values}
        for axis in study.axes
    }
    content = dict(base=study.base, set={**study.settings, **study.given}, axes=axes, seeds=list(study.seeds))
    content |= dict(skip=[{key: list(values) for key, values in one.items()} for one in study.skip])
    content |= dict(images=study.images, classes=study.classes, init=study.init or None)
    content |= dict(report=[dump_report(one) for one in study.reports])
    kept = {key: value for key, value in content.items() if value not in (None, [], {})}
    return yaml.safe_dump(kept, sort_keys=False, width=120)


def _scaled(content: Mapping[str, Any], scale: str | None, source: str) -> tuple[dict[str, Any], str]:
    """The parts of one scale: what it says replaces what both share; ``set`` and ``axes`` are joined by key."""
    there = [name for name in SCALES if name in content]
    if scale is not None and scale not in there:
        has = f"it has {' and '.join(there)}" if there else "it has one size, without --scale"
        raise UsageError(f"{source} has no scale {shown(scale)}; {has}")
    shared = {key: value for key, value in content.items() if key not in SCALES}
    if not there:
        return shared, ""
    scale = scale or there[0]
    own = content[scale]
    check_keys(own, PARTS, f"{source}, {scale}")
    for key, value in own.items():
        both = key in MERGED and isinstance(value, Mapping) and isinstance(shared.get(key), Mapping)
        shared[key] = {**shared[key], **value} if both else value
    return shared, scale


def _mapping(content: Mapping[str, Any], key: str, source: str, least: int = 0) -> dict[str, Any]:
    value = content.get(key) or {}
    if not isinstance(value, Mapping) or len(value) < least:
        wanted = "a mapping of dotted fields to values" if key == "set" else "a mapping of at least one axis"
        raise UsageError(f"{source}: {key} (={shown(content.get(key))}) must be {wanted}")
    if key == "set":
        for path in value:
            check_field(path, f"{source}, set")
    return dict(value)


def _check_set_once(settings: Mapping[str, Any], axes: Sequence[Axis], given: Mapping[str, Any], source: str) -> None:
    """A field is set by one axis at most, not on the command line as well; and seeds are no field of these."""
    of: dict[str, str] = {}
    for axis in axes:
        for path in {path for value in axis.values for path in value.fields}:
            if path in of:
                raise UsageError(f"{source}: the axes {of[path]} and {axis.name} both set {path}; leave it out of one")
            of[path] = axis.name
    for path in given:
        check_field(path, "the options")
        if axis_name := next((of[p] for p in of if p == path or p.startswith(f"{path}.")), None):
            raise UsageError(f"--{path} (={shown(given[path])}) is what the axis {axis_name} of the study varies")
    if SEED in {*settings, *of, *given}:
        raise UsageError(f"{source}: {SEED} is set by the seeds of the study; leave it out, and use --seeds")


def _base(base: Any, name: str, source: str) -> str:
    if not isinstance(base, str):
        raise UsageError(f"{source}: base (={shown(base)}) must be the name or the file of a recipe")
    if _is_file(base):  # beside the study's file, or where the command is run
        beside = Path(name).parent / base
        return str(beside) if _is_file(name) and beside.is_file() else base
    if base not in list_recipes():
        hint = did_you_mean(base, list_recipes(), "`normfree recipes` lists them")
        raise UsageError(f"{source}: base (={shown(base)}) is no recipe; {hint}")
    return base


def _with_photos(settings: dict[str, Any], base: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Where images of one's own take the place of the embedded ones: sizes and colours as in the recipe for those."""
    source = given.get("data.source")
    if not isinstance(source, str) or load_recipe(base).data.source != EMBEDDED or with_kind(source) == EMBEDDED:
        return settings
    if settings.get("data.source", EMBEDDED) != EMBEDDED:
        return settings
    photos = load_recipe(PHOTOS)
    theirs = {f"data.{key}": value for key, value in dataclasses.asdict(photos.data).items() if key != "source"}
    theirs |= {"data.image_size": PHOTO_SIDE, "data.test_size": PHOTO_SIDE}  # one size for all networks of the study
    return theirs | settings | {f"model.options.{key}": value for key, value in photos.model.options.items()}


def _seeds(seeds: Any, source: str) -> tuple[int, ...]:
    if type(seeds) is int and 1 <= seeds <= MOST_SEEDS:
        return tuple(range(seeds))
    several = list(seeds) if isinstance(seeds, Sequence) and not isinstance(seeds, str) else []
    if not several or len(several) > MOST_SEEDS or not all(type(seed) is int and seed >= 0 for seed in several):
        raise UsageError(
            f"{source}: seeds (={shown(seeds)}) must be how many, or a list: 1 to {MOST_SEEDS:,}, each at least 0"
        )
    if len(set(several)) < len(several):
        raise UsageError(f"{source}: seeds (={shown(seeds)}) must differ")
    return tuple(several)


def _skipped(content: Any, axes: Sequence[Axis], where: str) -> dict[str, tuple[str, ...]]:
    """Values of axes: a cell that has one of them for each axis is left out."""
    by_name = {axis.name: axis for axis in axes}
    check_keys(content, by_name, where)
    if not content:
        raise UsageError(f"{where}: an entry without an axis would leave out everything")
    found = {}
    for name, values in content.items():
        several = values if isinstance(values, list) and label(values) not in _names(by_name[name]) else [values]
        found[name] = tuple(by_name[name].find(value, where).name for value in several)
    return found


def _names(axis: Axis) -> list[str]:
    return [value.name for value in axis.values]


def _listed(content: Any, where: str) -> list[Any]:
    if content is not None and not isinstance(content, list):
        raise UsageError(f"{where} (={shown(content)}) must be a list of mappings of axes to values")
    return content or []


def _init(value: Any, axes: Sequence[Axis], source: str) -> str:
    if value is not None and not isinstance(value, str):
        raise UsageError(f"{source}: init (={shown(value)}) must be text: a run folder or a file")
    known = [*(axis.name for axis in axes), "seed"]
    for name in PLACE.findall(value or ""):
        if name not in known:
            hint = did_you_mean(name, known, f"there are {', '.join(known)}")
            raise UsageError(f"{source}: init names {{{name}}}, which is no axis of the study; {hint}")
    return value or ""


def _count(value: Any, where: str) -> int | None:
    if value is not None and (type(value) is not int or value < 1):
        raise UsageError(f"{where} (={shown(value)}) must be an integer of at least 1")
    return value


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) or "/" in name


@functools.cache
def _folder() -> Any:
    return resources.files("normfree.studies")
