"""The device of a training run, and the memory layout of its tensors."""

import torch

from ..errors import UsageError
from ..internals import private
from .config import TrainConfig

_has_bfloat16 = private("torch.cpu._is_avx512_bf16_supported")
_has_amx = private("torch.cpu._is_amx_tile_supported")


def pick_device(name: str, float64: bool = False) -> torch.device:
    """A device by name; "auto" is CUDA where there is one, else the CPU.

    >>> pick_device("cpu")
    device(type='cpu')

    Args:
        float64: whether the device must have float64, as training needs for its sums.

    Raises:
        UsageError: no such device here, or one without float64.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "mps" and float64:
            raise UsageError(f"device (={name!r}) has no float64, in which sums are taken here; use cpu or cuda")
        torch.empty(0, device=device)
        if device.type == "meta":
            raise RuntimeError("it has no memory")
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = f" ({str(error).splitlines()[0].partition('. ')[0]})" if name.startswith("cuda") else ""
        raise UsageError(f"device (={name!r}) is not available{reason}; use {_devices()}") from error
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())  # one of several processes has chosen its own
    return device


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a CPU multiplies in bfloat16 itself, which makes training about twice as fast (docs/performance.md)."""
    return device.type == "cpu" and bool((_has_bfloat16 and _has_bfloat16()) or (_has_amx and _has_amx()))


def _devices() -> str:
    """Names of the available devices, for an error message."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = ["auto", "cpu", *(f"cuda:{index}" for index in range(count))]
    return ", ".join(names[:-1]) + f" or {names[-1]}"


def memory_format_of(train: TrainConfig, device: torch.device) -> torch.memory_format:
    """Of activations and weights: the recipe's choice, else the one measured to be faster (docs/performance.md)."""
    last = train.channels_last
    if last is None:
        last = device.type == "cpu" and train.precision == "bfloat16" and train.parallel != "fsdp"
    return torch.channels_last if last else torch.contiguous_format
