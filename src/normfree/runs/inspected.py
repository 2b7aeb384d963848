"""A network named on the command line: one of ours, a trained one, or what a Python function returns."""

import importlib
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UsageError
from ..models import create_model
from ..models.registry import IMAGENET_MEAN, IMAGENET_STD, test_crop
from ..tasks import Trained
from ..tasks.statistics import image_statistics
from .load import load_trained
from .named import Kind, check_choice, kind_of

# no expression: nothing is run before both names are known to be names
GRAMMAR = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True)
class InspectedNetwork:
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


def open_inspected(text: str, overrides: dict[str, Any], seed: int, which: str | None = None) -> InspectedNetwork:
    """What a text names (see :mod:`.named`), but for exported files, which show nothing of what happens inside.

    Args:
        overrides: arguments of a model by name or of a function, for example ``{"alpha": 1.0}``.
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
    if overrides and kind not in (Kind.MODEL, Kind.FUNCTION):
        raise UsageError(f"--option is for models by name and for functions; {text} is a trained network")
    check_choice(text, kind, which)
    if kind not in (Kind.FUNCTION, Kind.MODEL):
        network = load_trained(text, which)
        network.task.set_sizes(network.recipe, network.model)
        data = network.recipe.data
        side = data.test_size or 0  # which is set by now
        return InspectedNetwork(
            Path(text).resolve().name,
            network.model,
            (data.channels, side, side),
            *image_statistics(data),
            data.resize_margin,
            data.test_crop or "squash",
            run=network,
            pretrained=True,
            value_range=None if data.value_range == "auto" else data.value_range,
        )
    label = ", ".join(f"{key}={value}" for key, value in overrides.items())
    if kind is Kind.FUNCTION:
        name = text.partition(":")[2]
        named = _as_usual(f"{name} ({label})" if label else name, _made_by(text, overrides))
        return replace(named, pretrained=bool(overrides.get("pretrained") or overrides.get("weights")))
    try:
        model = create_model(text, **overrides)
    except (TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
        if isinstance(error, UsageError):
            raise
        reason = " ".join(str(error).split())
        raise UsageError(f"--option {overrides} does not build {text}: {reason}") from error
    named = _as_usual(f"{text} ({label})" if label else text, model)
    return replace(named, pretrained=bool(overrides.get("pretrained")))


def _as_usual(name: str, model: nn.Module) -> InspectedNetwork:
    """With what timm keeps with a model; else colour images of 224 px, normalized by ImageNet's statistics."""
    config = getattr(model, "default_cfg", None)
    config = config if isinstance(config, dict) else {}
    channels, height, width = config.get("input_size") or (3, 224, 224)
    mean, std = (config["mean"], config["std"]) if config.get("mean") else (IMAGENET_MEAN, IMAGENET_STD)
    mean, std = (mean, std) if len(mean) == channels else ((0.5,) * channels,) * 2
    return InspectedNetwork(
        name, model, (channels, height, width), tuple(mean), tuple(std), test_crop=test_crop(config)
    )


def _made_by(text: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The module that ``pkg.module:factory`` is, or returns for arguments by name. It runs the user's code."""
    if not GRAMMAR.fullmatch(text):
        raise UsageError(f"{text} must look like pkg.module:factory, names alone; --option KEY=VALUE gives arguments")
    path, _, name = text.partition(":")
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
    if isinstance(target, nn.Module) and arguments:
        raise UsageError(f"--option is for models by name and for functions; {text} is a network")
    if not isinstance(target, nn.Module):
        try:
            target = target(**arguments)
        except (Exception, SystemExit) as error:  # it is the user's code
            raise UsageError(f"{text} failed: {_reason(error)}") from error
    if not isinstance(target, nn.Module):
        raise UsageError(f"{text} gave a {type(target).__name__}; it must be or return a torch.nn.Module")
    return target


def _reason(error: BaseException) -> str:
    """In one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
