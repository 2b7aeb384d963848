"""A network named on the command line: one of ours, a trained one, or what a Python function returns."""

import ast
import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UsageError
from ..models import create_model
from .trained import load_trained


@dataclass(frozen=True)
class Named:
    """A network, what to call it, and the shape (C, H, W) of its inputs."""

    name: str
    model: nn.Module
    shape: tuple[int, int, int]


def open_network(text: str, overrides: dict[str, Any], seed: int, which: str | None = None) -> Named:
    """``MODEL``, ``RUN`` (a run folder or .safetensors file), ``pkg.module:factory`` or ``pkg.module:factory(...)``.

    Args:
        overrides: arguments of a model by name, for example ``{"alpha": 1.0}``.
        seed: of a fresh model's weights.
        which: a run's checkpoint.

    Raises:
        UsageError: unknown or unusable, with the reason.
    """
    torch.manual_seed(seed)
    trained = Path(text).exists()
    if overrides and (trained or ":" in text):
        raise UsageError(
            f"--option is for models by name; {text} is {'a trained network' if trained else 'a function'}"
        )
    if trained:
        network = load_trained(text, which)
        channels, size = network.recipe.data.channels, network.recipe.data.test_size
        size = size or network.model.default_cfg["test_input_size"][-1]
        return Named(Path(text).resolve().name, network.model, (channels, size, size))
    if ":" in text:
        model = _made_by(text)
        return Named(text.partition(":")[2], model, _usual_shape(model))
    model = create_model(text, **overrides)
    label = ", ".join(f"{key}={value}" for key, value in overrides.items())
    return Named(f"{text} ({label})" if label else text, model, _usual_shape(model))


def _usual_shape(model: nn.Module) -> tuple[int, int, int]:
    """What timm keeps with a model; else colour images of 224 px."""
    return tuple(getattr(model, "default_cfg", {}).get("input_size") or (3, 224, 224))


def _made_by(text: str) -> nn.Module:
    """The module that ``pkg.module:factory`` is, or returns."""
    path, _, call = text.partition(":")
    name, args, kwargs = _parsed(call, text)
    sys.path.insert(0, os.getcwd())  # as `python -m` does: one's own file need not be installed
    try:
        target: Any = importlib.import_module(path)
    except ImportError as error:
        raise UsageError(f"{text}: module {path!r} cannot be imported: {error}") from error
    finally:
        sys.path.remove(os.getcwd())
    try:
        for part in name.split("."):
            target = getattr(target, part)
    except AttributeError as error:
        raise UsageError(f"{text}: {path} has no {name!r}") from error
    if not isinstance(target, nn.Module):
        try:
            target = target(*args, **kwargs)
        except Exception as error:  # it is the user's code
            raise UsageError(f"{text} failed: {type(error).__name__}: {error}") from error
    if not isinstance(target, nn.Module):
        raise UsageError(f"{text} gave a {type(target).__name__}; it must be or return a torch.nn.Module")
    return target


def _parsed(call: str, text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """``factory`` or ``factory(1, "a", key=True)``: its name and literal arguments."""
    try:
        node = ast.parse(call, mode="eval").body
        if not isinstance(node, ast.Call):
            return ast.unparse(node), [], {}
        kwargs = {item.arg: ast.literal_eval(item.value) for item in node.keywords if item.arg}
        return ast.unparse(node.func), [ast.literal_eval(arg) for arg in node.args], kwargs
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"{text} must look like pkg.module:factory or pkg.module:factory('name', size=64)") from error
