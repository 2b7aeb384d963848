"""Finding the network's tensors in a checkpoint of any training script.

The rules, in this order:

1. Of all dicts of tensors in the file, only those with at least half as many tensors as the largest count.
2. The moving average is chosen if there is one, as by ``normfree eval``; ``weights="raw"`` chooses the others.
3. Among several, the one under a usual name (``state_dict``, ``model``, ...) is chosen; else the file is ambiguous.
4. Parts of names from wrappers (``_orig_mod``, ...) are removed, and so are prefixes of ``stages.`` in the names of a
   network's layers (``module.``, ``model.``, ``backbone.``, ...). Tensors elsewhere are left out, except a classifier
   ``head.fc`` beside the backbone.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..limits import MAX_CHECKPOINT_ENTRIES
from ..words import counted
from .pickles import shown

AVERAGES = {"state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "module_ema", "ema", "averaged_model"}
USUAL = {"state_dict", "model_state_dict", "model_state", "model", "network", "net", "module", "weights", "params", ""}
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.")
_HEAD = "head.fc."
_MAX_NESTING = 4  # dicts in dicts
_LAYER = re.compile(r"(?:(.*?)\.)?stages\.\d+\.")
StateDicts = dict[str, dict[str, Any]]


def find_state(content: Any, kind: type, path: Any, weights: str | None = None) -> tuple[dict[str, Any], list[str]]:
    """The state dict of a network in the content of a file, without prefixes, and notes about the choice.

    Args:
        content: nested mappings of a file.
        kind: the type of a tensor in them.
        path: of the file, for messages.
        weights: "ema" or "raw"; None takes the average if there is one.

    Raises:
        UsageError: there is none, or there are several and none has a usual name.
    """
    if not isinstance(content, Mapping):
        raise UsageError(f"{path} holds {_called(content)}, not a state dict; save the state_dict() of the network")
    state_dicts = _dicts(content, kind, path)
    if not state_dicts:
        first = list(content.items())[:4]
        others = ", ".join(f"{_printable(name)} ({_called(value)})" for name, value in first)
        raise UsageError(f"{path} holds no state dict of tensors{f', but {others}' if others else ''}")
    name, notes = _chosen(state_dicts, path, weights)
    state = {_without_wrappers(full): value for full, value in state_dicts[name].items()}
    inside: StateDicts = {}
    for full, value in state.items():
        if layer := _LAYER.match(full):
            inside.setdefault(layer[1] or "", {})[full] = value
    prefix, more = _chosen(inside, path, weights) if inside else ("", [])
    average = bool(AVERAGES & {*name.split("."), *prefix.split(".")})
    if weights is not None and average != (weights == "ema"):
        raise UsageError(f"{path} has no {'averaged' if weights == 'ema' else 'other than averaged'} weights")
    begin = f"{prefix}." if prefix else ""
    inner = {full.removeprefix(begin): value for full, value in state.items() if full.startswith(begin)}
    head = _classifier_beside(prefix, state) if prefix and not any(name.startswith(_HEAD) for name in inner) else {}
    left = [full for full in state if not full.startswith(begin) and full not in head]
    return inner | {head[full]: state[full] for full in head}, [*notes, *more, *_left(left, begin)]


def _classifier_beside(prefix: str, state: Mapping[str, Any]) -> dict[str, str]:
    """The nearest classifier outside the backbone: its names, and these without the prefix of ``head.fc.``."""
    parts = prefix.split(".")
    for depth in reversed(range(len(parts))):
        begin = "".join(f"{part}." for part in parts[:depth])
        names = [begin + _HEAD + kind for kind in ("weight", "bias") if begin + _HEAD + kind in state]
        if names:
            return {full: full.removeprefix(begin) for full in names}
    return {}


def _without_wrappers(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _left(names: list[str], begin: str) -> list[str]:
    shown = f"{', '.join(names[:3])}{', ...' if names[3:] else ''}"
    are = "is" if len(names) == 1 else "are"
    return [f"{counted(len(names), 'tensor')} {are} not under {begin} and {are} left out ({shown})"] if names else []


def _dicts(content: Mapping[Any, Any], kind: type, path: Any) -> StateDicts:
    """Every mapping that holds tensors by name, by its dotted place.

    Raises:
        UsageError: mappings that hold one another many times.
    """
    state_dicts: StateDicts = {}
    pending: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), content)]
    entries = 0
    while pending:
        place, mapping = pending.pop()
        entries += len(mapping)
        if entries > MAX_CHECKPOINT_ENTRIES:
            raise UsageError(f"{path} holds more than {MAX_CHECKPOINT_ENTRIES:,} entries in its mappings")
        named = {name: value for name, value in mapping.items() if isinstance(name, str)}
        tensors = {name: value for name, value in named.items() if isinstance(value, kind)}
        if tensors:
            state_dicts[".".join(place)] = tensors
        inner = [((*place, name), value) for name, value in named.items() if isinstance(value, Mapping)]
        pending += reversed(inner) if len(place) < _MAX_NESTING else []
    return state_dicts


def _chosen(state_dicts: StateDicts, path: Any, weights: str | None) -> tuple[str, list[str]]:
    """The name of the chosen state dict, and a note if there are others."""
    largest = max(map(len, state_dicts.values()))
    large = [name for name, tensors in state_dicts.items() if 2 * len(tensors) >= largest]
    average = [name for name in large if AVERAGES & set(name.split("."))]
    raw = [name for name in large if name not in average]
    names = raw if raw and (weights == "raw" or not average) else average
    usual = [name for name in names if set(name.split(".")) & USUAL]
    one = usual and all(_same(state_dicts[usual[0]], state_dicts[other]) for other in usual[1:])
    name = names[0] if len(names) == 1 else usual[0] if one else None
    if name is None:
        raise UsageError(
            f"{path} holds several sets of weights: {', '.join(map(_shown, names[:6]))}; save one of them alone"
        )
    left = ", ".join(_shown(other) for other in large if not _same(state_dicts[name], state_dicts[other]))
    return name, [f"the weights under {_shown(name)} are taken, not those under {left}"] if left else []


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two sets are the same tensors under the same names."""
    return one is other or (one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)


def _shown(name: str) -> str:
    return f"{name!r:.80}" if name else "no name"


def _called(value: Any) -> str:
    return _printable(getattr(value, "stands_for", "") or type(value).__name__)


def _printable(name: Any) -> str:
    """A name for a message of one line."""
    if isinstance(name, int) and abs(name) < 2**63:
        return str(name)
    return name[:40] if isinstance(name, str) and name.isprintable() else shown(name)
