"""The network of ``normfree spp``: a model by name, a trained one, or what a Python function returns."""

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

# names only: an expression must not run code
FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True)
class InspectedNetwork:
    """A network with its name, the shape (C, H, W) of its inputs and the preprocessing of its images.

    Of volumes, the shape is (C, D, H, W).

    Attributes:
        run: the trained network of a run or a checkpoint file; None for others.
        pretrained: whether its weights are trained.
    """

    name: str
    model: nn.Module
    shape: tuple[int, ...]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resize_margin: int = 32
    test_crop: str = "squash"
    run: Trained | None = None
    pretrained: bool = False
    value_range: tuple[float, ...] | None = None


def open_inspected(text: str, overrides: dict[str, Any], seed: int, which: str | None = None) -> InspectedNetwork:
    """The network that a text names (see :mod:`.named`), except exported files, whose inside cannot be recorded.

    Args:
        overrides: arguments of a model by name or of a function, for example ``{"alpha": 1.0}``.
        seed: to initialize a model by name or of a function.
        which: a run's checkpoint.

    Raises:
        UsageError: unknown or unusable; the message says why.
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
        shape, data = network.shape, network.recipe.data
        if len(shape) == 3:
            shape = (shape[0], shape[1], shape[1])
        return InspectedNetwork(
            Path(text).resolve().name,
            network.model,
            shape,
            *image_statistics(data),
            data.resize_margin,
            data.test_crop or "squash",
            run=network,
            pretrained=True,
            value_range=None if isinstance(data.value_range, str) else data.value_range,
        )
    label = ", ".join(f"{key}={value}" for key, value in overrides.items())
    if kind is Kind.FUNCTION:
        name = text.partition(":")[2]
        named = _described(f"{name} ({label})" if label else name, _call(text, overrides))
        return replace(named, pretrained=bool(overrides.get("pretrained") or overrides.get("weights")))
    try:
        model = create_model(text, **overrides)
    except (TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
        if isinstance(error, UsageError):
            raise
        reason = " ".join(str(error).split())
        raise UsageError(f"--option {overrides} does not build {text}: {reason}") from error
    named = _described(f"{text} ({label})" if label else text, model)
    return replace(named, pretrained=bool(overrides.get("pretrained")))


def _described(name: str, model: nn.Module) -> InspectedNetwork:
    """With the input size and statistics in the model's ``default_cfg``; else 3 x 224 x 224 and those of ImageNet."""
    config = getattr(model, "default_cfg", None)
    config = config if isinstance(config, dict) else {}
    shape = tuple(config.get("input_size") or (3, 224, 224))
    mean, std = (config["mean"], config["std"]) if config.get("mean") else (IMAGENET_MEAN, IMAGENET_STD)
    mean, std = (mean, std) if len(mean) == shape[0] else ((0.5,) * shape[0],) * 2
    return InspectedNetwork(name, model, shape, tuple(mean), tuple(std), test_crop=test_crop(config))


def _call(text: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The module that ``pkg.module:factory`` is, or returns for the keyword arguments. This runs the user's code."""
    if not FUNCTION.fullmatch(text):
        raise UsageError(f"{text} must look like pkg.module:factory, names alone; --option KEY=VALUE gives arguments")
    path, _, name = text.partition(":")
    folder = os.getcwd()
    sys.path.insert(0, folder)  # as `python -m` does: a local file need not be installed
    try:
        target: Any = importlib.import_module(path)
    except (Exception, SystemExit) as error:  # it runs the user's code
        raise UsageError(f"{text}: module {path!r} cannot be imported: {_reason(error)}") from error
    finally:
        sys.path.remove(folder)
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
    """The error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
