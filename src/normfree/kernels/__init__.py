"""Compiled kernels for the CPU, if a C++ compiler was available at the installation of normfree; by Triton for a GPU.

Every function falls back to torch's operations: without the library, on other devices, for other types or layouts, and
under ``torch.compile``, ``torch.func`` and tracing. The result is the same, only slower. The kernels are compiled for
several instruction sets, and the best one of the processor is loaded. The environment variable ``NORMFREE_KERNELS``
chooses another: ``avx512``, ``avx2``, ``default``, or ``0`` for none. On a GPU there is a kernel of the optimizer's
step, if Triton is installed.
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
