"""The authors' Haiku weights: one mapping of names, both directions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..models import ResidualNet, ScalarBias
from ..nn import SameConv2d, SkipInit, WSConv2d
from .scheme import check_standardized
from .unpickle import read_arrays

Arrays = Mapping[str, Mapping[str, np.ndarray]]

_FAMILIES = {  # root module, name of a block, name of the stem's layers
    "nfnet": ("NFNet", "nf_block", "stem_"),
    "nf_regnet": ("NF_RegNet", "nf_block", "initial_"),
    "nf_resnet": ("NF_ResNet", "nf_res_block", "initial_"),
    "bn_resnet": ("ResNet", "res_block_v2", "initial_"),
    "bn_resnet_v1": ("ResNet", "res_block_v1", "initial_"),
    "fixup_resnet": ("FixUp_ResNet", "res_block", "initial_"),
    "skipinit_resnet": ("SkipInit_ResNet", "nf_res_block", "initial_"),
}
_STATE = {"running_mean": "mean_ema", "running_var": "var_ema"}


def haiku_names(model: ResidualNet) -> dict[str, tuple[str, str]]:
    """Haiku's (module, parameter) for each of our parameter names.

    Raises:
        UsageError: the model's family or weight scheme, or a layer that an option adds, has no counterpart in the
            authors' code.

    Example:
        >>> haiku_names(normfree.create_model("nf_resnet26_small"))["head.fc.weight"]
        ('NF_ResNet/~/linear', 'w')
    """
    family = getattr(model, "family", None)
    if family not in _FAMILIES:
        raise UsageError(
            f"{type(model).__name__} (family {family!r}) has no Haiku counterpart; {', '.join(_FAMILIES)} have"
        )
    check_standardized(model, "the authors' networks")
    root, block, stem = _FAMILIES[family]
    names: dict[str, tuple[str, str]] = {}

    def add(prefix: str, layer: nn.Module, module: str, owner: str) -> None:
        """The parameters of ``layer`` under ``module``; scalars belong to the ``owner`` around it."""
        if isinstance(layer, SkipInit | ScalarBias):
            name = "skip_gain" if isinstance(layer, SkipInit) else prefix.rsplit(".", 1)[-1]
            names[f"{prefix}.{'skip_gain' if isinstance(layer, SkipInit) else 'bias'}"] = (owner, name)
            return
        ours = next((table for kind, table in _NAMES.items() if isinstance(layer, kind)), {})
        for name, _ in layer.named_parameters(recurse=False):
            names[f"{prefix}.{name}"] = (module, ours.get(name, name))

    for name, layer in model.stem.named_children():
        add(f"stem.{name}", layer, f"{root}/~/{stem}{name}", root)
    for index, (name, layers) in enumerate(model.named_blocks()):
        inside = f"{root}/~/{block}" + (f"_{index}" if index else "")
        for child, layer in layers.named_children():
            # the authors' code creates the shortcut's normalization in the call, not in the constructor
            module = f"{inside}/shortcut_bn" if child == "shortcut_bn" else f"{inside}/~/{child}"
            add(f"{name}.{child}", layer, module, inside)
        add(name, layers, inside, inside)  # the block's own parameters: FixUp's scale
        squeeze_excite = getattr(layers, "squeeze_excite", None)
        if isinstance(squeeze_excite, nn.Module):
            for child, linear in (("fc0", "linear"), ("fc1", "linear_1")):
                layer, module = squeeze_excite.get_submodule(child), f"{inside}/~/squeeze_excite/~/{linear}"
                add(f"{name}.squeeze_excite.{child}", layer, module, inside)
    for name, layer in model.named_children():
        if name not in ("stem", "stages", "head"):
            add(name, layer, f"{root}/~/{name}", root)
    add("head.fc", model.get_classifier(), f"{root}/~/linear", root)
    unnamed = [name for name, _ in model.named_parameters() if name not in names]
    if unnamed:
        raise UsageError(
            f"{_describe(model)} has no Haiku counterpart of {', '.join(unnamed[:3])}{', ...' if unnamed[3:] else ''}"
        )
    return names


def haiku_state_names(model: ResidualNet, names: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Haiku's (module, name) of BatchNorm's running statistics, which Haiku separates from the parameters."""
    buffers = [name.rpartition(".") for name, _ in model.named_buffers()]
    return {
        f"{layer}.{name}": (f"{names[f'{layer}.weight'][0]}/~/{_STATE[name]}", "average")
        for layer, _, name in buffers
        if name in _STATE
    }


def load_haiku(model: ResidualNet, source: str | Path | Arrays) -> ResidualNet:
    """Fill a model with weights in the authors' naming; the model is returned.

    Running statistics of BatchNorm (Haiku's state: modules ``.../mean_ema`` and ``.../var_ema``) may be among them.

    Args:
        source: ``{module: {name: array}}`` or the path of a file with it, such as the published ``F0_haiku.npz`` (a
            pickle, read by :func:`read_arrays`, which builds numpy arrays and nothing else).

    Raises:
        UsageError: an unreadable file; parameters missing, extra, misshapen or not numeric, all by name. The
            model is unchanged then.

    Example:
        >>> model, other = (normfree.create_model("nf_resnet26_small") for _ in range(2))
        >>> _ = load_haiku(other, to_haiku(model))
        >>> torch.equal(other.head.fc.weight, model.head.fc.weight)
        True
    """
    arrays = read_arrays(source) if isinstance(source, (str, Path)) else source
    for module, inner in arrays.items():
        if not isinstance(inner, Mapping):
            raise UsageError(f"weights are {{module: {{name: array}}}}; {module!r} holds a {type(inner).__name__}")
    given = {(module, name): array for module, inner in arrays.items() for name, array in inner.items()}
    names, parameters = haiku_names(model), dict(model.named_parameters()) | dict(model.named_buffers())
    averages = {key for key in given if key[0].endswith(tuple(_STATE.values()))}
    if averages:
        names |= haiku_state_names(model, names)
        given = {key: given[key] for key in given.keys() - averages | {key for key in averages if key[1] == "average"}}
    missing = [key for key in names.values() if key not in given]
    extra = sorted(given.keys() - set(names.values()))
    if missing or extra:
        raise UsageError(
            f"weights do not fit {_describe(model)}: {_listed('missing', missing)}{_listed('extra', extra)}"
        )
    wrong = []
    for ours, key in names.items():
        expected, array = _haiku_shape(key[1], parameters[ours]), as_array(given[key])
        if array.shape != expected:
            wrong.append(f"{'/'.join(key)} has shape {array.shape}, {_describe(model)} needs {expected}")
        elif array.dtype.kind not in "fiu":
            wrong.append(f"{'/'.join(key)} is of type {array.dtype}, not numbers")
    if wrong:
        raise UsageError("; ".join(wrong[:8]) + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""))
    with torch.no_grad():
        for ours, key in names.items():
            parameter = parameters[ours]
            parameter.copy_(_from_haiku(as_array(given[key]), parameter))
    return model


def to_haiku(model: ResidualNet, *, state: bool = False) -> dict[str, dict[str, np.ndarray]]:
    """A model's weights as ``{module: {name: array}}`` in the authors' naming and layout, bit for bit.

    ``state=True`` adds BatchNorm's running statistics.

    Example:
        >>> model = normfree.create_model("nf_resnet26_small")
        >>> to_haiku(model)["NF_ResNet/~/linear"]["w"].shape
        (256, 1000)
    """
    parameters, names = dict(model.named_parameters()) | dict(model.named_buffers()), haiku_names(model)
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for ours, (module, name) in (names | (haiku_state_names(model, names) if state else {})).items():
        parameter = parameters[ours].detach().cpu()
        if parameter.dtype == torch.bfloat16:
            parameter = parameter.float()  # numpy has no bfloat16
        array = parameter.permute(_TO_HAIKU[parameter.ndim]).reshape(_haiku_shape(name, parameter)).numpy()
        arrays.setdefault(module, {})[name] = np.array(array)  # a copy: it does not change with the model
    return arrays


_SCALARS = {"scale", "bias1", "bias2"} | {f"bias{k}{side}" for k in (1, 2, 3) for side in "ab"}  # FixUp's
_NAMES = {
    nn.Linear: {"weight": "w", "bias": "b"},
    nn.BatchNorm2d: {"weight": "scale", "bias": "offset"},
    WSConv2d: {"weight": "w"},
    SameConv2d: {"weight": "w", "bias": "b"},  # hk.Conv2D
}
_TO_HAIKU = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}  # linear OI -> IO, convolution OIHW -> HWIO
_FROM_HAIKU = {0: (), 1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}


def _haiku_shape(name: str, parameter: Tensor) -> tuple[int, ...]:
    if name == "skip_gain" or (name in _SCALARS and parameter.numel() == 1):  # a scalar there, one element here
        return ()
    if name in ("scale", "offset", "average"):
        return (1, 1, 1, *parameter.shape)
    return tuple(parameter.shape[i] for i in _TO_HAIKU[parameter.ndim])


def as_array(value: Any) -> np.ndarray:
    """An array in the machine's byte order; lists of unequal length become an array of objects, refused later."""
    try:
        array = np.asarray(value)
    except ValueError:
        return np.asarray(None)
    if array.dtype == np.longdouble:
        return array.astype(np.float64)  # torch has no longer type
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _from_haiku(array: np.ndarray, parameter: Tensor) -> Tensor:
    array = array.transpose(_FROM_HAIKU[array.ndim])
    return torch.from_numpy(np.array(array, order="C")).view(parameter.shape)


def _describe(model: ResidualNet) -> str:
    return getattr(model, "default_cfg", {}).get("architecture", type(model).__name__)


def _listed(word: str, keys: list[tuple[str, str]]) -> str:
    if not keys:
        return ""
    shown = ", ".join("/".join(key) for key in keys[:8])
    return f"{len(keys)} {word} ({shown}{', ...' if len(keys) > 8 else ''}) "
