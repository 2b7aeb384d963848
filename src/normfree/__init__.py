"""Normalizer-Free networks for PyTorch: models, primitives, optimizer, recipes."""

import importlib
from types import ModuleType

from . import requirements as requirements  # isort: skip - before anything that needs the packages
from . import functional, nn, optim, spp, weights
from .convert import convert_model
from .errors import RunFailed, UsageError
from .export import fold
from .gain import activation_gain
from .measured import measured_gain
from .models import ModelInfo, list_models, model_info
from .version import __version__
from .weights import create_model

ROOMS = (
    "bench",
    "data",
    "export",
    "models",
    "pictures",
    "private",
    "recipes",
    "report",
    "runs",
    "studies",
    "tasks",
    "training",
)


def __getattr__(name: str) -> ModuleType:
    """Rooms that take time to import, when they are first asked for: ``normfree.runs.train()``."""
    if name in ROOMS:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ModelInfo",
    "RunFailed",
    "UsageError",
    "__version__",
    "activation_gain",
    "convert_model",
    "create_model",
    "fold",
    "functional",
    "list_models",
    "measured_gain",
    "model_info",
    "nn",
    "optim",
    "spp",
    "weights",
]
