"""Gradients of single examples: norms, clipping, noise scale, and the parts of differentially private training."""

from .accounting import Ledger, epsilon_of, noise_for
from .checks import refuse_batch_norm
from .config import PrivateConfig
from .each import agc_each_, per_example_gradients
from .noise import add_noise_, secure_normal
from .noise_scale import NoiseScale, Spread, noise_scale
from .passes import ExamplePasses
from .verify import verify

__all__ = [
    "ExamplePasses",
    "Ledger",
    "NoiseScale",
    "PrivateConfig",
    "Spread",
    "add_noise_",
    "agc_each_",
    "epsilon_of",
    "noise_for",
    "noise_scale",
    "per_example_gradients",
    "refuse_batch_norm",
    "secure_normal",
    "verify",
]
