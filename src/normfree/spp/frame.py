"""A recording at one step of training."""

from dataclasses import dataclass

from .rows import Recording
from .spectra import Spectrum


@dataclass(frozen=True)
class Frame:
    """The signal and the weights' spectra after ``step`` training steps."""

    step: int
    spp: Recording
    spectra: list[Spectrum]
