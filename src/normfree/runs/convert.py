"""Converting weights between the forms of the authors, of timm and of normfree: ``normfree convert``."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..errors import RunFailed, UsageError
from ..files import whole_file
from ..models import ResidualNet
from ..models.config import ModelConfig
from ..recipes import describe
from ..training import save_weights
from ..weights import convert as weights
from .foreign import Opened, class_names, open_foreign, read_named, recipe_from, recipe_of
from .load import load_trained
from .named import TRAINED, Kind, check_choice, kind_of, other_wanted

FORMS = {"haiku": "the authors' form", "timm": "timm's form", "normfree": "normfree's form"}
SIZE = 96  # side in pixels of the inputs of --verify; a multiple of every network's total stride


def open_any(source: str, overrides: Mapping[str, Any], which: str | None = None, kind: str | None = None) -> Opened:
    """Load the weights of a file of any form into their network."""
    what = kind_of(source)
    check_choice(source, what, which)
    if what not in TRAINED:
        raise other_wanted(source, what)
    if what in (Kind.RUN, Kind.CHECKPOINT):
        if given := [key for key in overrides if key.startswith("model.")]:
            raise UsageError(f"{source} says which network it is; --{given[0].replace('.name', '')} is for other files")
        trained = load_trained(source, which, kind)
        shapes = weights.shapes_of(trained.model.state_dict(), "normfree")
        if not isinstance(trained.model, ResidualNet):
            what = (
                trained.recipe.model.name if trained.recipe.model.is_library else f"a network for {trained.task.name}"
            )
            raise UsageError(f"{source} is {what}; convert takes normfree's networks that classify images")
        return Opened("normfree", Path(trained.source), trained.model, trained.recipe.model, shapes)
    config = recipe_from({key: value for key, value in overrides.items() if key.startswith("model.")}).model
    return open_foreign(source, config, kind)


def write(dest: Path, form: str, tensors: Mapping[str, Any], opened: Opened, overrides: Mapping[str, Any]) -> None:
    """Write the file, whole or not at all."""
    if form == "normfree":
        return save_weights(dest, tensors, _description(opened, overrides))
    if overrides:
        raise UsageError(f"--{next(iter(overrides))} is for --to normfree; {FORMS[form]} has no place for it")
    with whole_file(dest) as part:
        if form == "timm":
            save_file(dict(tensors), part, metadata={"format": "pt"})
        else:
            with part.open("wb") as file:
                pickle.dump(tensors, file, protocol=4)
    return None


def _description(opened: Opened, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The description of a checkpoint: a recipe with the papers' evaluation, and names of the classes."""
    recipe = recipe_of(opened, overrides)
    classes, names = class_names(opened.model.num_classes)
    return describe(recipe, classes) | dict(names=names, converted_from=opened.form)


def table(rows: Sequence[weights.Row], before: str, after: str) -> list[str]:
    """A line for each tensor: name and shape in the source, name and shape in the new file."""

    def cells(name: str | None, shape: tuple[int, ...] | None) -> tuple[str, str]:
        return ("-", "") if name is None else (name, "x".join(map(str, shape or ())) or "1")

    lines = [(before, "", after, "")]
    lines += [(*cells(row.source, row.source_shape), *cells(row.dest, row.dest_shape)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def summary(
    rows: Sequence[weights.Row], dest: Path, form: str, tensors: Mapping[str, Any], opened: Opened
) -> list[str]:
    """Lines about what was read, which tensors have no place in the new form, and what was written."""
    model, written = opened.model, [row for row in rows if row.dest]
    parameters = sum(p.numel() for p in model.parameters())
    lines = [f"{opened.file}: {note}" for note in opened.notes]
    unused = [str(row.source) for row in rows if row.dest is None]
    if unused:
        lines.append(
            f"{len(unused)} tensors of {opened.file} have no place in {FORMS[form]}: {', '.join(unused[:3])}, ..."
        )
    lines.append(
        f"{dest}: {opened.config.name} with {model.num_classes} classes in {FORMS[form]}; {len(written)} tensors, "
        f"{parameters:,} parameters, {dest.stat().st_size / 1e6:,.1f} MB"
    )
    return lines


def verify(dest: Path, form: str, opened: Opened) -> list[str]:
    """Read the file back, compare every bit, and compare logits with timm's if timm has the network."""
    fields = {f"model.{key}": value for key, value in vars(opened.config).items()}
    again = open_any(str(dest), {} if form == "normfree" else fields)
    new = weights.report(opened.model, opened.shapes, opened.form, again.shapes, form)
    kept = weights.tensor_names(opened.model, form).keys() & weights.tensor_names(opened.model, opened.form).keys()
    differing = weights.same_tensors(opened.model, again.model, sorted(kept))
    if differing:
        raise RunFailed(f"{dest} was written, but {len(differing)} tensors differ when it is read: {differing[0]}, ...")
    lines = [f"read back: all {sum(row.dest is not None for row in new)} tensors are the same bit for bit"]
    if "haiku" in (form, opened.form):
        lines.append("the authors' code (JAX and Haiku) is not run here; nothing is claimed about its outputs")
    if "timm" in (form, opened.form):
        file = dest if form == "timm" else opened.file
        lines += _against_timm(file, again.model if opened.form == "timm" else opened.model, opened.config)
    return lines


@torch.no_grad()
def _against_timm(file: Path, model: ResidualNet, config: ModelConfig) -> list[str]:
    """Compare the logits of timm's network and of ours, with the same tensors, on one seeded input."""
    name = f"dm_{config.name}" if model.family == "nfnet" else config.name.removeprefix("timm_")
    try:
        import timm
    except ImportError:
        return ["timm is not installed: its logits cannot be compared"]
    state, channels = read_named(str(file)).tensors, model.in_chans
    if config.options or name not in timm.list_models():
        return [f"timm has no {name}{' with these options' if config.options else ''}: there are no logits to compare"]
    theirs = timm.create_model(name, num_classes=model.num_classes, in_chans=channels).eval()
    theirs.load_state_dict(state)
    x = torch.randn(1, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    expected = theirs(x)
    largest = ((model(x) - expected).abs().max() / expected.abs().max()).item()
    lines = [f"logits of {config.name} and of timm's {name} at {SIZE} px: largest relative difference {largest:.1e}"]
    if model.family == "nfnet":
        note = f"  (timm's {name} computes another function than the released one: docs/weights.md; "
        lines.append(f"{note}--model timm_{name} is timm's)")
    return lines
