"""Compiled kernels for the CPU, where a C++ compiler was at hand when normfree was installed; by Triton for a GPU.

Every function has the portable path behind it: without the library, on other devices, for other types or layouts, and
under ``torch.compile``, ``torch.func`` and tracing, the result is the same, only later. They were compiled for several
sets of instructions, and the best that the processor has is loaded. ``NORMFREE_KERNELS`` in the environment chooses
another: ``avx512``, ``avx2``, ``default``, or ``0`` for none. On a GPU there is the optimizer's step, where Triton is
installed.
"""

from .activation import gelu, gelu_tanh, silu
from .library import available, variant, why_off
from .merge import gated_merge
from .optimizer import agc_sgd_ema_
from .standardize import fused_standardize_weight
from .torch_step import DeviceUpdate, Update

__all__ = [
    "DeviceUpdate",
    "Update",
    "agc_sgd_ema_",
    "available",
    "fused_standardize_weight",
    "gated_merge",
    "gelu",
    "gelu_tanh",
    "silu",
    "variant",
    "why_off",
]
