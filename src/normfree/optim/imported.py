"""An optimizer of another package by the name of its class, ``package.module:Class``."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import UsageError


def is_import(name: object) -> bool:
    """Whether it names a class to import.

    >>> is_import("torch.optim:NAdam"), is_import("adam")
    (True, False)
    """
    return isinstance(name, str) and ":" in name


def import_optimizer(name: str) -> type[torch.optim.Optimizer]:
    """The class of an optimizer, from ``package.module:Class``. Importing runs the module's code.

    >>> import_optimizer("torch.optim:NAdam").__name__
    'NAdam'

    Raises:
        UsageError: there is no such module or class, it is no torch optimizer, or its steps need a closure.
    """
    module, _, attribute = name.partition(":")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UsageError(f"name (={name!r}) cannot be imported: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise UsageError(f"name (={name!r}) must be a torch.optim.Optimizer; it is {kind!r:.80}")
    closure = inspect.signature(kind.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UsageError(f"name (={name!r}) needs a closure in each step, which training here does not give it")
    return kind


def build_imported(name: str, groups: list[dict[str, Any]], options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """It over groups, with learning rate 0.

    Raises:
        UsageError: see :func:`import_optimizer`; it refuses the options; it has no decay of weights, and a group has.
    """
    kind = import_optimizer(name)
    decayed = max((group["weight_decay"] for group in groups), default=0.0)
    try:
        optimizer = kind(groups, lr=0.0, **options)  # pyright: ignore[reportCallIssue]
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"name (={name!r}) cannot be made with options (={dict(options)}): {error}") from error
    if decayed and "weight_decay" not in optimizer.defaults:
        raise UsageError(f"weight_decay (={decayed}) must be 0: {name} has none")
    return optimizer
