"""Loading weights into a network with other classes, other image channels, or another stem."""

import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..functional import pull_weight, standardize_weight
from ..models import ResidualNet
from ..nn import DecoupledWSConv2d, GainConv2d, SameConv2d, WSConv2d
from .file import FLOATS, PUBLISHED_OF, Weights
from .haiku import as_array, haiku_names, haiku_state_names
from .timm import timm_names

_HEAD = re.compile(r"head\.fc\.|\w+/~/linear/")  # our and timm's name, the authors'
_STEM = re.compile(r"stem\.|\w+/~/(stem|initial)_")
NO_CLASSIFIER = "without their classifier"
_FROM_HAIKU = {0: (), 1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}


@torch.no_grad()
def carry(model: ResidualNet, weights: Weights) -> list[str]:
    """Fill a network with weights, as far as they fit.

    All but stem and classifier must fit. The classifier is left unchanged if the number of classes differs, and another
    stem, too. A first convolution for other channels is adapted (:func:`adapt_channels`).

    Returns:
        What differs from the weights, each in a few words.

    Raises:
        UsageError: weights of another architecture, by the names of tensors; the network is unchanged then.
    """
    state, notes = fitted(model, weights)
    own = model.state_dict()
    for name, value in state.items():
        own[name].copy_(value)
    return notes


def summary(weights: Weights, notes: list[str]) -> str:
    """The result of :func:`carry`, and the chosen weights, in one sentence."""
    start = weights.origin if weights.origin.startswith(PUBLISHED_OF) else f"weights from {weights.origin}"
    return ", ".join([start, *weights.notes, *notes])


def warn(weights: Weights, notes: list[str], stacklevel: int = 2) -> None:
    """Warn about the choice of weights, and about differences from them, if there are any."""
    if weights.notes or (notes and notes != [NO_CLASSIFIER]):
        warnings.warn(summary(weights, notes), stacklevel=stacklevel + 1)


def fitted(model: ResidualNet, weights: Weights) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors that :func:`carry` copies, by our names, and its notes."""
    own, given = model.state_dict(), in_our_names(model, weights)
    notes: list[str] = []
    for part, rule in ((_STEM, _stem), (_HEAD, _classifier)):
        ours, theirs = ({n: v for n, v in values.items() if part.match(n)} for values in (own, given))
        if {n: v.shape for n, v in ours.items()} != {n: v.shape for n, v in theirs.items()}:
            result = rule(model, theirs)
            if result is not None:
                replaced, note = result
                given = {n: v for n, v in given.items() if n not in theirs} | replaced
                own = {n: v for n, v in own.items() if n not in ours or n in replaced}
                notes += [note] if note else []
    _check(model, own, given, weights)
    return {name: given[name] for name in own if name in given}, notes


def in_our_names(model: ResidualNet, weights: Weights) -> dict[str, Tensor]:
    """The tensors by our names, and in our shapes if they differ only in axes of one element; others keep their name.

    Raises:
        UsageError: the form has no counterpart of the model's family.
    """
    own = model.state_dict()
    if weights.form == "haiku":
        given = {f"{m}/{n}": _from_haiku(a) for m, inner in weights.tensors.items() for n, a in inner.items()}
        names = haiku_names(model)
        names = {ours: "/".join(key) for ours, key in (names | haiku_state_names(model, names)).items()}
        # Haiku keeps the sum behind each running average, too
        sums = {
            key for key in given if key.rpartition("/")[0].endswith(("mean_ema", "var_ema")) and key[-7:] != "average"
        }
        given = {key: value for key, value in given.items() if key not in sums}
    else:
        given = dict(weights.tensors)
        names = timm_names(model) if weights.form == "timm" else {}
    theirs = {their: our for our, their in names.items()}
    return {theirs.get(name, name): _as(own.get(theirs.get(name, name)), value) for name, value in given.items()}


def _from_haiku(array: Any) -> Tensor:
    array = as_array(array)
    if array.ndim not in _FROM_HAIKU or array.dtype.kind not in "fiu":
        return torch.empty(0, dtype=torch.bool)  # fits no parameter
    return torch.from_numpy(np.array(array.transpose(_FROM_HAIKU[array.ndim]), order="C"))


def _as(own: Tensor | None, value: Tensor) -> Tensor:
    """``value`` in the shape of ``own``, if they differ only in axes of one element."""
    same = own is not None and [n for n in own.shape if n != 1] == [n for n in value.shape if n != 1]
    return value.reshape(own.shape) if own is not None and same else value


def _stem(model: ResidualNet, theirs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str] | None:
    """Our stem from theirs: the first convolution is adapted to other channels; of another stem, nothing is used."""
    first = f"{model.first_conv}.weight"
    own = {name: value for name, value in model.state_dict().items() if _STEM.match(name)}
    kernels, others = ([tuple(v.shape) for v in values.values() if v.ndim == 4] for values in (own, theirs))
    if [(out, *k) for out, _, *k in kernels] != [(out, *k) for out, _, *k in others] and others:
        sides = (" ".join(f"{k[0]}x{k[1]}" for _, _, *k in shapes) for shapes in (kernels, others))
        return {}, f"with a new stem ({' instead of '.join(sides)})"
    if first not in theirs or 0 in theirs[first].shape:
        return None
    conv, weight = model.get_submodule(first.removesuffix(".weight")), theirs[first]
    if not isinstance(conv, SameConv2d | nn.Conv2d):
        return None
    gain = first.replace("weight", "gain")
    adapted = adapt_channels(conv, weight, theirs.get(gain))
    stem = dict(theirs) | {first.replace("weight", name): value for name, value in adapted.items()}
    if {n: v.shape for n, v in stem.items()} != {n: v.shape for n, v in own.items()}:
        return None
    channels = f"{conv.in_channels} channel{'s' * (conv.in_channels > 1)} instead of {weight.shape[1]}"
    return stem, f"with the first convolution adapted to {channels}"


def _classifier(model: ResidualNet, theirs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str] | None:
    """Nothing of a classifier with other classes; None if it has other features."""
    weight = next((value for name, value in theirs.items() if value.ndim == 2), None)
    if not model.num_classes:
        return {}, NO_CLASSIFIER if theirs else ""
    if weight is None:
        return (
            ({}, f"with a new classifier ({model.num_classes} classes; the weights have none)") if not theirs else None
        )
    if weight.shape[1] != model.head_hidden_size or len(weight) == model.num_classes:
        return None
    return {}, f"with a new classifier ({model.num_classes} classes instead of {len(weight)})"


def adapt_channels(conv: SameConv2d | nn.Conv2d, weight: Tensor, gain: Tensor | None) -> dict[str, Tensor]:
    """Weight and gain for images of other channels, such that images whose channels are all equal give the same output.

    For fewer channels, kernels are summed; for more, each kernel is repeated and divided evenly among its copies. A
    standardization or normalization would undo such a factor, so it goes into the gain of each unit.

    Args:
        conv: of the new channels.
        weight: (out, other channels, k, k); gain: (out,), of a convolution that has one.
    """
    weight = weight.float()
    if not isinstance(conv, GainConv2d):
        return dict(weight=_spread(weight, conv.in_channels))

    def effective(weight: Tensor) -> Tensor:
        if isinstance(conv, WSConv2d):
            return standardize_weight(weight.double(), eps=conv.eps, add_eps=conv.add_eps)
        return conv.reparameterized(weight.double(), None, None, None)

    if conv.centred:
        weight = weight - weight.mean((1, 2, 3), keepdim=True)  # the mean could not be divided evenly
    spread = _spread(weight, conv.in_channels)
    if isinstance(conv, DecoupledWSConv2d):
        spread = pull_weight(spread, eps=conv.eps)  # it stays standardized
    if gain is None:
        return dict(weight=spread)
    target, result = _spread(effective(weight), conv.in_channels), effective(spread)
    norm = (result * result).sum((1, 2, 3))
    ratio = torch.where(norm > 0, (target * result).sum((1, 2, 3)) / norm.clamp(min=1e-300), 1.0)
    return dict(weight=spread, gain=(gain.double() * ratio).to(gain.dtype))


def _spread(weight: Tensor, channels: int) -> Tensor:
    """The kernels for another number of channels; their sum is the same."""
    count = weight.shape[1]
    if channels >= count:
        source = torch.arange(channels) % count
        return weight[:, source] / torch.bincount(source)[source].view(1, -1, 1, 1)
    summed = weight.new_zeros(len(weight), channels, *weight.shape[2:])
    return summed.index_add_(1, torch.arange(count) % channels, weight)


def _check(model: ResidualNet, own: Mapping[str, Tensor], given: Mapping[str, Tensor], weights: Weights) -> None:
    """Every tensor must fit; the authors' files may lack BatchNorm's running statistics."""
    needed = own.keys() if weights.form != "haiku" else {name for name, _ in model.named_parameters()} & own.keys()
    problems = [
        f"{len(names)} {word} ({', '.join(names[:8])}{', ...' if names[8:] else ''})"
        for word, names in (("missing", sorted(needed - given.keys())), ("extra", sorted(given.keys() - own.keys())))
        if names
    ]
    both = [(name, own[name], given[name]) for name in own if name in given]
    problems += [
        f"{name} has shape {tuple(theirs.shape)}, the model needs {tuple(ours.shape)}"
        for name, ours, theirs in both
        if ours.shape != theirs.shape
    ][:4]
    problems += [
        f"{name} is of type {theirs.dtype}, not floating-point numbers"
        for name, ours, theirs in both
        if ours.is_floating_point() and theirs.dtype not in FLOATS and not (weights.form == "haiku" and theirs.numel())
    ][:4]
    if problems:
        name = getattr(model, "default_cfg", {}).get("architecture", type(model).__name__)
        raise UsageError(f"{weights.origin} has weights of another architecture than {name}: {'; '.join(problems)}")
