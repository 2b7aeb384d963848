"""Weights on disk: safetensors files that say which model they belong to."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import RunFailed, UsageError

_KEY = "normfree"  # entry of the file's metadata that holds our description as JSON


def save_weights(path: Path, state: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors and a JSON description; the file appears whole or not at all.

    Raises:
        RunFailed: the file cannot be written; what was there before is intact.
    """
    part = path.with_name(path.name + ".part")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part, metadata={_KEY: json.dumps(description)})
        os.umask(mask := os.umask(0))
        part.chmod(0o666 & ~mask)  # safetensors makes files that only their owner can read
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise RunFailed(f"cannot write {path}: {error}") from error


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a file by :func:`save_weights`.

    Raises:
        UsageError: missing, truncated, not safetensors, or written by something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            description = (file.metadata() or {}).get(_KEY)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path} cannot be read as safetensors: {error}") from error
    if description is None:
        raise UsageError(f"{path} does not say which model it belongs to; it was not written by normfree train")
    try:
        return state, json.loads(description)
    except ValueError as error:
        raise UsageError(f"{path} has a description that is not JSON: {error}") from error


def load_weights(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Fill a model; every tensor must fit. ``origin`` names the file in errors.

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
    if problems:
        raise UsageError(f"{origin} is a checkpoint of another architecture: {'; '.join(problems)}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])
