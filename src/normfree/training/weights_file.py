"""Weights on disk: safetensors files with a description of their model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import UsageError
from ..files import regular, whole_file
from ..optim.sharded import fill

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_OTHERS = dict(  # kinds in a checkpoint
    momentum="the momentum of the optimizer", optimizer="the state of the optimizer", random="the random states"
)
_KEY = "normfree"  # entry of the file's metadata that holds our description as JSON


def save_weights(path: str | Path, state: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors and a JSON description; the file appears whole or not at all.

    >>> path = Path(tempfile.mkdtemp()) / "weights.safetensors"
    >>> save_weights(path, nn.Linear(2, 1).state_dict(), dict(model="linear"))
    >>> read_description(path)
    {'model': 'linear'}

    Raises:
        RunFailed: the file cannot be written; an earlier file is intact.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with whole_file(path) as part:
        save_file(tensors, part, metadata={_KEY: json.dumps(description)})


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a file by :func:`save_weights`.

    >>> path = Path(tempfile.mkdtemp()) / "weights.safetensors"
    >>> save_weights(path, dict(weight=torch.ones(2)), dict(model="two ones"))
    >>> read_weights(path)
    ({'weight': tensor([1., 1.])}, {'model': 'two ones'})

    Raises:
        UsageError: missing, truncated, not safetensors, written by another program, or another part of a checkpoint
            than weights.
    """
    state, description = _read(path)
    if description is None:
        raise UsageError(
            f"{path} does not say which model it belongs to, as the files of normfree train and convert do; "
            f"timm's become such by `normfree convert {path} FILE --to normfree`"
        )
    try:
        content = json.loads(description)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} has a description that is not JSON: {error}") from error
    kind = content.get("kind") if isinstance(content, dict) else None
    if isinstance(kind, str) and kind in _OTHERS:
        beside = [name for name in ("weights.safetensors", "ema.safetensors") if Path(path).with_name(name).is_file()]
        wanted = " or ".join(beside) + " beside it" if beside else "a file of weights"
        raise UsageError(f"{path} is {_OTHERS[kind]} of a run, not weights; give {wanted}")
    return state, content


def read_description(path: str | Path) -> dict[str, Any]:
    """The description of a file by :func:`save_weights`, without its tensors; empty if there is none.

    >>> path = Path(tempfile.mkdtemp()) / "weights.safetensors"
    >>> save_weights(path, dict(weight=torch.ones(2)), dict(model="two ones"))
    >>> read_description(path)["model"]
    'two ones'
    """
    try:
        content = json.loads(_read(path, tensors=False)[1] or "{}")
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _read(path: str | Path, tensors: bool = True) -> tuple[dict[str, Tensor], str | None]:
    path = Path(path)
    try:
        with safe_open(regular(path), framework="pt") as file:
            names = file.keys()
            odd = [name for name in names if not name.isprintable() or len(name) > 200]
            if odd:
                raise UsageError(f"{path}: {odd[0]!r:.60} is no name of a tensor")
            return {name: file.get_tensor(name) for name in names}, (file.metadata() or {}).get(_KEY)
    except (OSError, SafetensorError) as error:
        reason = "".join(
            letter if letter.isprintable() else "?" for letter in str(getattr(error, "strerror", None) or error)[:300]
        )
        raise UsageError(f"{path} cannot be read as safetensors: {reason}") from error


def load_weights(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Fill a model; every tensor must fit. ``origin`` names the file in errors.

    >>> load_weights(nn.Linear(2, 1), dict(weight=torch.ones(1, 2)), "weights.safetensors")
    Traceback (most recent call last):
    normfree.errors.UsageError: weights.safetensors is a checkpoint of another architecture: 1 missing (bias)

    Raises:
        UsageError: missing, extra or misshapen tensors, by name; the model is unchanged then.
    """
    own = model.state_dict()
    problems = [
        f"{len(names)} {word} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
        for word, names in (
            ("missing", sorted(own.keys() - state.keys())),
            ("extra", sorted(state.keys() - own.keys())),
        )
        if names
    ]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, the model needs {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ][:4]
    problems += [
        f"{name} is of type {state[name].dtype}, the model needs {own[name].dtype}"
        for name in own
        if name in state and state[name].dtype not in (_FLOATS if own[name].is_floating_point() else (own[name].dtype,))
    ][:4]
    if problems:
        raise UsageError(f"{origin} is a checkpoint of another architecture: {'; '.join(problems)}")
    with torch.no_grad():
        for name, tensor in own.items():
            fill(tensor, state[name])
