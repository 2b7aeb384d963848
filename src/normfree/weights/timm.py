"""timm's weights: one mapping of names, both directions."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UsageError
from ..models import ResidualNet
from .file import FLOATS, read_weights_file
from .scheme import check_standardized

_FAMILIES = ("nfnet", "timm")  # the released NFNet has the parameters of timm's dm_nfnet
_LAYERS = {  # of a block
    "conv_shortcut": "downsample.conv",
    "conv0": "conv1",
    "conv1": "conv2",
    "conv1b": "conv2b",
    "conv2": "conv3",
}
_GATE = {"fc0": "fc1", "fc1": "fc2", "conv": "conv"}  # Squeeze-Excite's layers


def timm_names(model: ResidualNet) -> dict[str, str]:
    """timm's name for each of our parameter names.

    Raises:
        UsageError: timm has no counterpart of the model's family or weight scheme, or of a layer that an option adds.

    Example:
        >>> timm_names(normfree.create_model("timm_nf_resnet26", widths=(32, 64, 64, 64)))["stages.0.0.conv2.weight"]
        'stages.0.0.conv3.weight'
    """
    family = getattr(model, "family", None)
    if family not in _FAMILIES:
        raise UsageError(
            f"{type(model).__name__} (family {family!r}) has no counterpart in timm; nfnet_* and timm_* have"
        )
    check_standardized(model, "timm's networks")
    unnamed = [name for name, _ in model.named_parameters() if not _has_counterpart(model, name)]
    if unnamed:
        raise UsageError(f"timm has no counterpart of {', '.join(unnamed[:3])}{', ...' if unnamed[3:] else ''}")
    return {name: _timm_name(model, name) for name, _ in model.named_parameters()}


def _has_counterpart(model: ResidualNet, name: str) -> bool:
    parts = name.split(".")
    if parts[0] == "stages":
        straddled = parts[3] == "squeeze_excite" and _gate_position(model, parts) == "straddled"
        return not straddled and parts[3] in (*_LAYERS, "skip_init", "squeeze_excite")
    return parts[:2] == ["head", "fc"] or parts[0] == "final_conv" or (parts[0] == "stem" and parts[1][:4] == "conv")


def _gate_position(model: ResidualNet, parts: list[str]) -> str | None:
    return getattr(model.stages.get_submodule(".".join(parts[1:3])), "se_position", None)


def _timm_name(model: ResidualNet, name: str) -> str:
    parts = name.split(".")
    if parts[0] == "stem" and parts[1].startswith("conv") and parts[1] != "conv":
        return f"stem.conv{int(parts[1].removeprefix('conv')) + 1}.{parts[2]}"  # counted from 1 there
    if parts[0] != "stages":
        return name
    block, layer, rest = ".".join(parts[:3]), parts[3], parts[4:]
    if layer == "skip_init":
        return f"{block}.skipinit_gain"
    if layer == "squeeze_excite":
        position = _gate_position(model, parts)
        return f"{block}.{'attn_last' if position == 'end' else 'attn'}.{_GATE[rest[0]]}.{rest[1]}"
    return f"{block}.{_LAYERS[layer]}.{'.'.join(rest)}"


def _timm_shape(theirs: str, parameter: Tensor) -> tuple[int, ...]:
    """Gains are (C, 1, 1, 1) there, Squeeze-Excite's layers 1x1 convolutions, skip gains scalars."""
    if theirs.endswith("skipinit_gain"):
        return ()
    if theirs.endswith(".gain") or (".attn" in theirs and parameter.ndim == 2):
        return (*parameter.shape, *(1,) * (4 - parameter.ndim))
    return tuple(parameter.shape)


def load_timm(model: ResidualNet, source: str | Path | Mapping[str, Tensor]) -> ResidualNet:
    """Fill a model with weights of timm's network of the same shape; the model is returned.

    Args:
        source: a state dict of timm, or the path of a file with it, from any program.

    Raises:
        UsageError: an unreadable file; parameters missing, extra or misshapen or not numbers, by name. The model is
            unchanged then.

    Example:
        >>> model, other = (normfree.create_model("timm_nf_resnet26", widths=(32, 64, 64, 64)) for _ in range(2))
        >>> _ = load_timm(other, to_timm(model))
        >>> torch.equal(other.head.fc.weight, model.head.fc.weight)
        True
    """
    if isinstance(source, str | Path):
        weights = read_weights_file(source)
        if weights.notes:
            warnings.warn(", ".join([f"weights from {weights.origin}", *weights.notes]), stacklevel=2)
        given = weights.tensors
    else:
        given = source
    names, parameters = timm_names(model), dict(model.named_parameters())
    missing = [theirs for theirs in names.values() if theirs not in given]
    extra = sorted(given.keys() - set(names.values()))
    if missing or extra:
        raise UsageError(f"weights do not fit: {_listed('missing', missing)}{_listed('extra', extra)}")
    wrong = [
        f"{theirs} has shape {tuple(given[theirs].shape)}, the model needs {_timm_shape(theirs, parameters[ours])}"
        for ours, theirs in names.items()
        if tuple(given[theirs].shape) != _timm_shape(theirs, parameters[ours])
    ]
    wrong += [
        f"{theirs} is of type {given[theirs].dtype}, not floating-point numbers"
        for theirs in names.values()
        if given[theirs].dtype not in FLOATS
    ]
    if wrong:
        raise UsageError("; ".join(wrong[:8]) + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""))
    with torch.no_grad():
        for ours, theirs in names.items():
            parameters[ours].copy_(given[theirs].view(parameters[ours].shape))
    return model


def to_timm(model: ResidualNet) -> dict[str, Tensor]:
    """A model's weights as a state dict of timm's network of the same shape, bit for bit; copies.

    Example:
        >>> model = normfree.create_model("timm_nf_resnet26", widths=(32, 64, 64, 64))
        >>> [name for name in to_timm(model) if name.startswith("head")]
        ['head.fc.weight', 'head.fc.bias']
    """
    parameters = dict(model.named_parameters())
    return {
        theirs: parameters[ours].detach().clone().reshape(_timm_shape(theirs, parameters[ours]))
        for ours, theirs in timm_names(model).items()
    }


def _listed(word: str, names: list[str]) -> str:
    if not names:
        return ""
    return f"{len(names)} {word} ({', '.join(names[:8])}{', ...' if len(names) > 8 else ''}) "
