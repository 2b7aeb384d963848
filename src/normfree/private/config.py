"""The ``private`` section of a recipe."""

from dataclasses import dataclass
from typing import Literal

from ..errors import UsageError

MAX_NORM = 1e20  # beyond, float32 overflows
MAX_VIEWS = 1024


@dataclass
class PrivateConfig:
    """Differentially private training (DP-SGD): what the whole run may tell about any one image.

    Args:
        epsilon: budget of the run, with delta: images are drawn at random, the gradient of each is clipped, and noise
            is added to their sum. null: without privacy.
        delta: probability with which epsilon may fail; below 1 over the number of training images.
        max_norm: length to which the gradient of each image is clipped, over the whole network.
        noise_multiplier: standard deviation of the noise over max_norm. null: as little as the budget allows for the
            length of the run.
        augmentations: how many augmented views of an image its gradient is the mean of, before it is clipped.
        accountant: how epsilon is computed, both by Opacus: "prv" is tighter, "rdp" faster.
        secure: noise and draws from the system's random numbers, which nobody can repeat, and float32 alone. false:
            from train.seed, such that a run can be repeated, but its noise, too, by those who know the seed.
    """

    epsilon: float | None = None
    delta: float = 1e-5
    max_norm: float = 1.0
    noise_multiplier: float | None = None
    augmentations: int = 1
    accountant: Literal["prv", "rdp"] = "prv"
    secure: bool = False

    def __post_init__(self) -> None:
        for name in ("epsilon", "max_norm", "noise_multiplier"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= MAX_NORM:
                raise UsageError(f"private.{name} (={value}) must be above 0 and at most {MAX_NORM:g}")
        if not 0 < self.delta < 1:
            raise UsageError(f"private.delta (={self.delta}) must be above 0 and below 1")
        if not 1 <= self.augmentations <= MAX_VIEWS:
            raise UsageError(
                f"private.augmentations (={self.augmentations}) must be at least 1 and at most {MAX_VIEWS}"
            )

    @property
    def on(self) -> bool:
        """Whether training is private."""
        return self.epsilon is not None
