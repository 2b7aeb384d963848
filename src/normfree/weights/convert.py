"""Converting weights between forms: finding their network, and the names of each tensor on both sides."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..models import ResidualNet, list_models
from ..models.config import ModelConfig
from ..models.registry import lookup
from ..nn import BlockDCT2d, SkipInit
from .carry import carry
from .file import Weights
from .haiku import _FAMILIES, _haiku_shape, haiku_names, haiku_state_names, load_haiku, to_haiku
from .timm import _FAMILIES as _TIMM_FAMILIES
from .timm import load_timm, timm_names, to_timm

FORMS = ("haiku", "timm", "normfree")
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Row:
    """A tensor on both sides: name and shape, or None if this side does not have it."""

    source: str | None
    source_shape: tuple[int, ...] | None
    dest: str | None
    dest_shape: tuple[int, ...] | None


def shapes_of(weights: Mapping[str, Any], form: str) -> Shapes:
    """Name to shape of every tensor; ``{module: {name: array}}`` is named ``module/name``."""
    if form != "haiku":
        return {name: tuple(tensor.shape) for name, tensor in weights.items()}
    return {f"{m}/{n}": tuple(np.shape(array)) for m, inner in weights.items() for n, array in inner.items()}


def tensor_names(model: ResidualNet, form: str) -> dict[str, str]:
    """The name of each of our tensors in a form, in our order, without tensors that the form does not have.

    Raises:
        UsageError: the form has no counterpart of the model's family.
    """
    if form == "normfree":
        return {name: name for name in model.state_dict()}
    if form == "timm":
        return timm_names(model)
    names = haiku_names(model)
    return {ours: "/".join(key) for ours, key in (names | haiku_state_names(model, names)).items()}


def empty_model(config: ModelConfig, shapes: Shapes, form: str) -> ResidualNet:
    """A model on the meta device with as many classes and input channels as the tensors have.

    Raises:
        UsageError: unknown name or option, or the form has no counterpart of the model's family.
    """
    with torch.device("meta"):
        model = config.build(num_classes=1000, in_chans=3)
    classes, channels = sizes_in(model, shapes, form)
    with torch.device("meta"):
        return config.build(num_classes=classes, in_chans=channels)


def sizes_in(model: ResidualNet, shapes: Shapes, form: str) -> tuple[int, int]:
    """Classes (0: no classifier) and image channels of tensors of such a model.

    A size counts only if the rest of the shape is the model's, so that a file cannot ask for more than it has.
    """
    own, names = model.state_dict(), tensor_names(model, form)
    sizes = []
    for ours, dim, absent in (("head.fc.weight", 0, 0), (f"{model.first_conv}.weight", 1, 3)):
        given = shapes.get(names.get(ours, ours))
        if given is None:
            sizes.append(absent)
            continue
        if form == "haiku":  # (in, out), and HWIO for OIHW
            given = given[::-1] if len(given) == 2 else (*given[:1:-1], *given[:2])
        expected = list(own[ours].shape)
        expected[dim : dim + 1] = given[dim : dim + 1]
        sizes.append(given[dim] if tuple(expected) == given else own[ours].shape[dim])
    return sizes[0], sizes[1]


def fits(model: ResidualNet, shapes: Shapes, form: str) -> bool:
    """Whether the tensors are exactly the model's, by name and shape; BatchNorm's statistics may be missing."""
    names, own = tensor_names(model, form), model.state_dict()
    if form != "haiku":
        expected = shapes_of(to_timm(model) if form == "timm" else own, form)
    else:
        expected = {theirs: _haiku_shape(theirs.rpartition("/")[2], own[ours]) for ours, theirs in names.items()}
        if not any(map(_is_state, shapes)):
            expected = {name: shape for name, shape in expected.items() if not _is_state(name)}
        shapes = {name: shape for name, shape in shapes.items() if not (_is_state(name) and name not in expected)}
    return shapes == expected


def _is_state(name: str) -> bool:
    return name.rpartition("/")[0].endswith(("/mean_ema", "/var_ema"))


def fitting_models(shapes: Shapes, form: str) -> list[str]:
    """Names of the models with these tensors; released functions come before timm's.

    Only variants with as many blocks, of a family with such names, are built on the meta device.
    """
    if form != "haiku":
        families = _TIMM_FAMILIES if form == "timm" else None
        blocks = len({tuple(name.split(".")[:3]) for name in shapes if name.startswith("stages.")})
    else:
        roots = {name.partition("/")[0] for name in shapes}
        families = tuple(family for family, (root, _, _) in _FAMILIES.items() if {root} == roots)
        parts = {tuple(name.split("/")[:3]) for name in shapes}
        blocks = len({p[-1] for p in parts if any(p[-1].startswith(block) for _, block, _ in _FAMILIES.values())})
    fitting = []
    for name in list_models():
        cls, variant = lookup(name)
        if (families is None or cls.family in families) and sum(variant["depths"]) == blocks:
            model = empty_model(ModelConfig(name), shapes, form)
            fitting += [name] if fits(model, shapes, form) else []
    return sorted(fitting, key=lambda name: name.startswith("timm_"))


def choose_model(shapes: Shapes, form: str, source: str) -> tuple[str, list[str]]:
    """The model of the tensors, and other models with such tensors that compute timm's function.

    Raises:
        UsageError: none fits, or several do.
    """
    fitting = fitting_models(shapes, form)
    released = [name for name in fitting if not name.startswith("timm_")] or fitting
    if len(released) == 1:
        return released[0], [name for name in fitting if name not in released]
    if not fitting:
        raise UsageError(
            f"the {len(shapes)} tensors of {source} are of no model in {form}'s naming; name it with --model, "
            "and what differs from the variant with --model.options"
        )
    raise UsageError(f"{source} fits {', '.join(fitting)}; choose one with --model")


@torch.no_grad()
def load(config: ModelConfig, weights: Mapping[str, Any], form: str, source: str) -> ResidualNet:
    """The model with weights in any form, in evaluation mode.

    Raises:
        UsageError: the weights do not fit, by name of the tensors; ``source`` says where they are from.
    """
    shapes = shapes_of(weights, form)
    model = empty_model(config, shapes, form)
    fill = dict(haiku=load_haiku, timm=load_timm, normfree=_load_ours)[form]
    if not fits(model, shapes, form):
        if others := fitting_models(shapes, form):
            raise UsageError(f"{source} has the tensors of {', '.join(others)}, not of {config.name}")
        _quoting(source, fill, model, weights)  # raises, with the differences; on the meta device nothing is copied
        raise UsageError(f"{source} does not fit {config.name}")
    model = model.to_empty(device="cpu")
    for buffer, value in model.named_buffers():  # BatchNorm's, if the file has none
        value.fill_(1 if buffer.endswith("running_var") else 0)
    for module in model.modules():  # what constructors compute and no file holds
        if isinstance(module, SkipInit | BlockDCT2d):
            module.reset_constants()
    return _quoting(source, fill, model, weights).eval()


def _load_ours(model: ResidualNet, weights: Mapping[str, Tensor]) -> ResidualNet:
    carry(model, Weights(weights, "normfree", "the state dict"))
    return model


def _quoting(
    source: str,
    fill: Callable[[ResidualNet, Mapping[str, Any]], ResidualNet],
    model: ResidualNet,
    weights: Mapping[str, Any],
) -> ResidualNet:
    try:
        return fill(model, weights)
    except UsageError as error:
        raise UsageError(f"{source}: {str(error).strip()}") from error


def convert(model: ResidualNet, form: str) -> dict[str, Any]:
    """The model's weights in a form: ``{module: {name: array}}`` for "haiku", else a state dict.

    Raises:
        UsageError: the form has no counterpart of the model's family.
    """
    if form == "haiku":
        return to_haiku(model, state=True)
    return to_timm(model) if form == "timm" else dict(model.state_dict())


def report(model: ResidualNet, source: Shapes, source_form: str, dest: Shapes, dest_form: str) -> list[Row]:
    """A row for every tensor of either side, in our order; tensors of only the source come last."""
    theirs, new = tensor_names(model, source_form), tensor_names(model, dest_form)
    rows = []
    for ours in model.state_dict():
        before, after = (
            n if (n := names.get(ours)) in shapes else None for names, shapes in ((theirs, source), (new, dest))
        )
        if before or after:
            rows.append(Row(before, source.get(before) if before else None, after, dest.get(after) if after else None))
    named = {row.source for row in rows}
    return rows + [Row(name, shape, None, None) for name, shape in source.items() if name not in named]


def same_tensors(a: ResidualNet, b: ResidualNet, names: Iterable[str]) -> list[str]:
    """Names of the tensors that differ in any bit between two models of one kind."""
    first, second = a.state_dict(), b.state_dict()
    return [name for name in names if not _same_bits(first[name], second[name])]


def _same_bits(a: Tensor, b: Tensor) -> bool:
    a, b = (t.detach().reshape(-1).contiguous().view(torch.uint8) for t in (a, b))
    return torch.equal(a, b)
