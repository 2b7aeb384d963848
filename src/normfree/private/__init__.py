"""Gradients of single examples: their norms, clipping, noise scale, and differentially private training."""

from .checks import refuse_batch_norm
from .each import agc_each_, per_example_gradients
from .noise_scale import NoiseScale, Spread, noise_scale
from .passes import ExamplePasses

__all__ = [
    "ExamplePasses",
    "NoiseScale",
    "Spread",
    "agc_each_",
    "noise_scale",
    "per_example_gradients",
    "refuse_batch_norm",
]
