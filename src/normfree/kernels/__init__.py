"""Compiled kernels for the CPU, where a C++ compiler was at hand when normfree was installed.

Every function has the portable path behind it: without the library, on other devices, for other types or layouts, and
under ``torch.compile``, ``torch.func`` and tracing, the result is the same, only later. ``NORMFREE_KERNELS=0`` in the
environment turns the library off.
"""

from .activation import gelu_tanh, silu
from .library import available, why_off
from .optimizer import Update, agc_sgd_ema_
from .standardize import standardize_weight

__all__ = ["Update", "agc_sgd_ema_", "available", "gelu_tanh", "silu", "standardize_weight", "why_off"]
