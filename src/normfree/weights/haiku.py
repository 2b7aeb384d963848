"""The authors' Haiku weights: one mapping of names, both directions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..models import NFBlock, NormFreeNet
from ..nn import WSConv2d
from .unpickle import read_arrays

Arrays = Mapping[str, Mapping[str, np.ndarray]]

_FAMILIES = {  # root module, name of a block, name of the stem's convolutions
    "nfnet": ("NFNet", "nf_block", "stem_"),
    "nf_regnet": ("NF_RegNet", "nf_block", "initial_"),
    "nf_resnet": ("NF_ResNet", "nf_res_block", "initial_"),
}


def haiku_names(model: NormFreeNet) -> dict[str, tuple[str, str]]:
    """Haiku's (module, parameter) for each of our parameter names.

    Raises:
        UsageError: the model's family has no counterpart in the authors' code.
    """
    family = getattr(model, "family", None)
    if family not in _FAMILIES:
        raise UsageError(
            f"{type(model).__name__} (family {family!r}) has no Haiku counterpart; {', '.join(_FAMILIES)} have"
        )
    root, block, stem = _FAMILIES[family]
    names: dict[str, tuple[str, str]] = {}

    def add(prefix: str, layer: nn.Module, module: str) -> None:
        ours = {"weight": "w", "bias": "b"} if isinstance(layer, nn.Linear) else {"weight": "w"}
        for name, _ in layer.named_parameters(recurse=False):
            names[f"{prefix}.{name}"] = (module, ours.get(name, name))

    for name, layer in model.stem.named_children():
        add(f"stem.{name}", layer, f"{root}/~/{stem}{name}")
    blocks = [(name, module) for name, module in model.stages.named_modules() if isinstance(module, NFBlock)]
    for index, (name, module) in enumerate(blocks):
        here = f"{root}/~/{block}" + (f"_{index}" if index else "")
        for child, layer in module.named_children():
            if isinstance(layer, WSConv2d):
                add(f"stages.{name}.{child}", layer, f"{here}/~/{child}")
        if module.squeeze_excite is not None:
            add(f"stages.{name}.squeeze_excite.fc0", module.squeeze_excite.fc0, f"{here}/~/squeeze_excite/~/linear")
            add(f"stages.{name}.squeeze_excite.fc1", module.squeeze_excite.fc1, f"{here}/~/squeeze_excite/~/linear_1")
        names[f"stages.{name}.skip_init.skip_gain"] = (here, "skip_gain")
    add("final_conv", model.final_conv, f"{root}/~/final_conv")
    add("head.fc", model.get_classifier(), f"{root}/~/linear")
    return names


def load_haiku(model: NormFreeNet, source: str | Path | Arrays) -> NormFreeNet:
    """Fill a model with weights in the authors' naming; the model is returned.

    Args:
        source: ``{module: {name: array}}`` or the path of a file with it, such as the published ``F0_haiku.npz`` (a
            pickle, read by :func:`read_arrays`, which builds numpy arrays and nothing else).

    Raises:
        UsageError: an unreadable file; parameters missing, extra, misshapen or not numeric, all by name. The
            model is unchanged then.
    """
    arrays = read_arrays(source) if isinstance(source, (str, Path)) else source
    for module, inner in arrays.items():
        if not isinstance(inner, Mapping):
            raise UsageError(f"weights are {{module: {{name: array}}}}; {module!r} holds a {type(inner).__name__}")
    given = {(module, name): array for module, inner in arrays.items() for name, array in inner.items()}
    names, parameters = haiku_names(model), dict(model.named_parameters())
    missing = [key for key in names.values() if key not in given]
    extra = sorted(given.keys() - set(names.values()))
    if missing or extra:
        raise UsageError(
            f"weights do not fit {_describe(model)}: {_listed('missing', missing)}{_listed('extra', extra)}"
        )
    wrong = []
    for ours, key in names.items():
        expected, array = _haiku_shape(key[1], parameters[ours]), _as_array(given[key])
        if array.shape != expected:
            wrong.append(f"{'/'.join(key)} has shape {array.shape}, {_describe(model)} needs {expected}")
        elif array.dtype.kind not in "fiu":
            wrong.append(f"{'/'.join(key)} is of type {array.dtype}, not numbers")
    if wrong:
        raise UsageError("; ".join(wrong[:8]) + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""))
    with torch.no_grad():
        for ours, key in names.items():
            parameter = parameters[ours]
            parameter.copy_(_from_haiku(_as_array(given[key]), parameter))
    return model


def to_haiku(model: NormFreeNet) -> dict[str, dict[str, np.ndarray]]:
    """A model's weights as ``{module: {name: array}}`` in the authors' naming and layout, bit for bit."""
    parameters = dict(model.named_parameters())
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for ours, (module, name) in haiku_names(model).items():
        parameter = parameters[ours].detach().cpu()
        if parameter.dtype == torch.bfloat16:
            parameter = parameter.float()  # numpy has no bfloat16
        array = parameter.permute(_TO_HAIKU[parameter.ndim]).reshape(_haiku_shape(name, parameter)).numpy()
        arrays.setdefault(module, {})[name] = np.array(array)  # a copy: it does not change with the model
    return arrays


_TO_HAIKU = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}  # linear OI -> IO, convolution OIHW -> HWIO
_FROM_HAIKU = {0: (), 1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}


def _haiku_shape(name: str, parameter: Tensor) -> tuple[int, ...]:
    if name == "skip_gain":  # a scalar there, one element here
        return ()
    return tuple(parameter.shape[i] for i in _TO_HAIKU[parameter.ndim])


def _as_array(value: Any) -> np.ndarray:
    """An array in the machine's byte order; lists of unequal length become an array of objects, which is refused."""
    try:
        array = np.asarray(value)
    except ValueError:
        return np.asarray(None)
    if array.dtype == np.longdouble:
        return array.astype(np.float64)  # torch knows nothing longer
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _from_haiku(array: np.ndarray, parameter: Tensor) -> Tensor:
    array = array.transpose(_FROM_HAIKU[array.ndim])
    return torch.from_numpy(np.array(array, order="C")).view(parameter.shape)


def _describe(model: NormFreeNet) -> str:
    return getattr(model, "default_cfg", {}).get("architecture", type(model).__name__)


def _listed(word: str, keys: list[tuple[str, str]]) -> str:
    if not keys:
        return ""
    shown = ", ".join("/".join(key) for key in keys[:8])
    return f"{len(keys)} {word} ({shown}{', ...' if len(keys) > 8 else ''}) "
