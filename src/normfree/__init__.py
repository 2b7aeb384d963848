"""Normalizer-Free networks for PyTorch: models, primitives, optimizer, recipes."""

from . import requirements as requirements  # isort: skip - before anything that needs the packages
from . import functional, nn, optim, spp, weights
from .errors import RunFailed, UsageError
from .export import fold
from .gain import activation_gain
from .models import ModelInfo, list_models, model_info
from .version import __version__
from .weights import create_model

__all__ = [
    "ModelInfo",
    "RunFailed",
    "UsageError",
    "__version__",
    "activation_gain",
    "create_model",
    "fold",
    "functional",
    "list_models",
    "model_info",
    "nn",
    "optim",
    "spp",
    "weights",
]
