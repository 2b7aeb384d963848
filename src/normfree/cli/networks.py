"""A network named on the command line: one of ours, a trained one, or what a Python function returns."""

import ast
import importlib
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UsageError
from ..models import create_model
from ..models.registry import IMAGENET_MEAN, IMAGENET_STD, test_crop
from ..recipes import set_sizes
from ..tasks.statistics import image_statistics
from .named import Kind, check_choice, kind_of
from .trained import Trained, load_trained


@dataclass(frozen=True)
class Named:
    """A network, what to call it, the shape (C, H, W) of its inputs, and how its images are prepared.

    Attributes:
        run: of a run or a checkpoint file, the rest of it.
        pretrained: its weights were asked for as trained ones.
    """

    name: str
    model: nn.Module
    shape: tuple[int, int, int]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resize_margin: int = 32
    test_crop: str = "squash"
    run: Trained | None = None
    pretrained: bool = False
    value_range: tuple[float, ...] | None = None


def open_network(text: str, overrides: dict[str, Any], seed: int, which: str | None = None) -> Named:
    """What a text names (see :mod:`.named`), but for exported files, which show nothing of what happens inside.

    Args:
        overrides: arguments of a model by name, for example ``{"alpha": 1.0}``.
        seed: of a fresh model's weights.
        which: a run's checkpoint.

    Raises:
        UsageError: unknown or unusable, with the reason.
    """
    try:
        torch.manual_seed(seed)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"--seed (={seed}) must fit into 64 bits") from error
    kind = kind_of(text)
    if overrides and kind is not Kind.MODEL:
        what = kind if kind is Kind.FUNCTION else "a trained network"
        raise UsageError(f"--option is for models by name; {text} is {what}")
    check_choice(text, kind, which)
    if kind not in (Kind.FUNCTION, Kind.MODEL):
        network = load_trained(text, which)
        set_sizes(network.recipe, network.model)
        data = network.recipe.data
        shape, name = (data.channels, data.test_size, data.test_size), Path(text).resolve().name
        view = data.resize_margin, data.test_crop or "squash"
        about = dict(run=network, pretrained=True, value_range=data.value_range)
        return Named(name, network.model, shape, *image_statistics(data), *view, **about)
    if kind is Kind.FUNCTION:
        return replace(_as_usual(text.partition(":")[2], _made_by(text)), pretrained=_asks_for_weights(text))
    try:
        model = create_model(text, **overrides)
    except (TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
        if isinstance(error, UsageError):
            raise
        reason = " ".join(str(error).split())
        raise UsageError(f"--option {overrides} does not build {text}: {reason}") from error
    label = ", ".join(f"{key}={value}" for key, value in overrides.items())
    named = _as_usual(f"{text} ({label})" if label else text, model)
    return replace(named, pretrained=bool(overrides.get("pretrained")))


def _as_usual(name: str, model: nn.Module) -> Named:
    """With what timm keeps with a model; else colour images of 224 px, normalized by ImageNet's statistics."""
    config = getattr(model, "default_cfg", None)
    config = config if isinstance(config, dict) else {}
    channels, height, width = config.get("input_size") or (3, 224, 224)
    mean, std = (config.get("mean"), config.get("std")) if config.get("mean") else (IMAGENET_MEAN, IMAGENET_STD)
    mean, std = (mean, std) if len(mean) == channels else ((0.5,) * channels,) * 2
    return Named(name, model, (channels, height, width), tuple(mean), tuple(std), test_crop=test_crop(config))


def _made_by(text: str) -> nn.Module:
    """The module that ``pkg.module:factory`` is, or returns."""
    path, _, call = text.partition(":")
    name, args, kwargs = _parsed(call, text)
    here = os.getcwd()
    sys.path.insert(0, here)  # as `python -m` does: one's own file need not be installed
    try:
        target: Any = importlib.import_module(path)
    except (Exception, SystemExit) as error:  # it runs the user's code
        raise UsageError(f"{text}: module {path!r} cannot be imported: {_reason(error)}") from error
    finally:
        sys.path.remove(here)
    try:
        for part in name.split("."):
            target = getattr(target, part)
    except AttributeError as error:
        raise UsageError(f"{text}: {path} has no {name!r}") from error
    if not isinstance(target, nn.Module):
        try:
            target = target(*args, **kwargs)
        except (Exception, SystemExit) as error:  # it is the user's code
            raise UsageError(f"{text} failed: {_reason(error)}") from error
    if not isinstance(target, nn.Module):
        raise UsageError(f"{text} gave a {type(target).__name__}; it must be or return a torch.nn.Module")
    return target


def _asks_for_weights(text: str) -> bool:
    """Whether a call like ``timm:create_model('resnet50', pretrained=True)`` asks for trained weights."""
    kwargs = _parsed(text.partition(":")[2], text)[2]
    return bool(kwargs.get("pretrained") or kwargs.get("weights"))


def _parsed(call: str, text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """``factory`` or ``factory(1, "a", key=True)``: its name and literal arguments."""
    try:
        node = ast.parse(call, mode="eval").body
        if not isinstance(node, ast.Call):
            return ast.unparse(node), [], {}
        kwargs = {item.arg: ast.literal_eval(item.value) for item in node.keywords}
        if None in kwargs:
            raise ValueError("** is no literal")
        return ast.unparse(node.func), [ast.literal_eval(arg) for arg in node.args], kwargs
    except (SyntaxError, ValueError, TypeError) as error:
        raise UsageError(f"{text} must look like pkg.module:factory or pkg.module:factory('name', size=64)") from error


def _reason(error: BaseException) -> str:
    """In one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
