"""Loading the compiled library, with torch's threads; and which tensors its kernels support."""

import ctypes
import functools
import importlib.machinery
import os
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..internals import Missing, private

INTERFACE = 5  # as in cpu.cpp: a library of another version is not used
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}  # as in cpu.cpp

_is_compiling = torch.compiler.is_compiling
_modes, _tracing = private("torch._C._len_torch_dispatch_stack"), private("torch._C._get_tracing_state")
_transforms = private("torch._C._are_functorch_transforms_active")
# without one of them it is unknown whether a compiler or a tracer must see an operation: the kernels stay off
_NEEDED = (_modes, _tracing, _transforms, private("torch.autograd.forward_ad._current_level"))
_MISSING = next((function for function in _NEEDED if isinstance(function, Missing)), None)
_strided, _channels_last = torch.strided, torch.channels_last

_SERIAL = 32768  # elements below which torch uses one thread, too
_PLAIN = frozenset((Tensor, torch.nn.Parameter))
_POINTER, _COUNT, _NUMBER, _DOUBLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_double
_VARIANTS = ("avx512", "avx2", "default")  # instruction sets in setup.py, the fastest first; torch's names
_SIGNATURES = {
    "nf_interface": (_NUMBER, ()),
    "nf_instructions": (ctypes.c_char_p, ()),
    "nf_use_threads_of": (None, (_POINTER,)),
    "nf_activation": (None, (_NUMBER, _NUMBER, _POINTER, _POINTER, _COUNT, _NUMBER)),
    "nf_activation_backward": (None, (_NUMBER, _NUMBER, _POINTER, _POINTER, _POINTER, _COUNT, _NUMBER)),
    "nf_standardize": (
        None,
        (_NUMBER, _POINTER, _POINTER, _DOUBLE, _DOUBLE, _NUMBER, _COUNT, _COUNT, _POINTER, _POINTER, _NUMBER),
    ),
    "nf_standardize_backward": (
        _DOUBLE,
        (_NUMBER, *(_POINTER,) * 3, _DOUBLE, _COUNT, _COUNT, *(_POINTER,) * 4, _NUMBER),
    ),
    "nf_sum_places": (None, (_NUMBER, *(_COUNT,) * 3, _NUMBER, *(_POINTER,) * 3, _NUMBER)),
    "nf_gated": (None, (_NUMBER, *(_COUNT,) * 3, _NUMBER, *(_POINTER,) * 4, _NUMBER)),
    "nf_merged": (None, (_NUMBER, _NUMBER, *(_COUNT,) * 3, _NUMBER, *(_POINTER,) * 5, _NUMBER)),
    "nf_linear": (None, (_NUMBER, *(_COUNT,) * 3, _NUMBER, _DOUBLE, *(_POINTER,) * 4, _NUMBER)),
    "nf_optimizer_step": (_NUMBER, (_POINTER, _COUNT, _POINTER, _NUMBER)),
}


def available() -> bool:
    """Whether there are compiled kernels in this process; :func:`why_off` says why not.

    Example:
        >>> available() == (why_off() is None)
        True
    """
    return _load()[0] is not None


def why_off() -> str | None:
    """One line on why the kernels are off, None where they are on.

    Example:
        >>> reason = why_off()
        >>> reason is None or isinstance(reason, str)
        True
    """
    return _load()[1]


def library() -> ctypes.CDLL:
    """The loaded library; call it only if :func:`available` is true."""
    loaded, reason = _load()
    if loaded is None:
        raise RuntimeError(f"the compiled kernels are off: {reason}")
    return loaded


def turned_off() -> bool:
    """Whether the environment turns all kernels off."""
    return os.environ.get("NORMFREE_KERNELS", "1") == "0"


def variant() -> str | None:
    """The instruction set of the loaded library; None without a library.

    Example:
        >>> variant() in ("avx512", "avx2", "default", None)
        True
    """
    loaded = _load()[0]
    return None if loaded is None else loaded.nf_instructions().decode()


def threads(elements: int) -> int:
    """Threads for a kernel over ``elements``: torch's number, or one if dividing costs more than it saves."""
    return torch.get_num_threads() if elements > _SERIAL else 1


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or the reason why there is none. Once per process."""
    if turned_off():
        return None, "NORMFREE_KERNELS is 0"
    if _MISSING is not None:
        return None, _MISSING.reason
    try:
        path = _file(os.environ.get("NORMFREE_KERNELS", "1"))
    except LookupError as error:
        return None, error.args[0]
    try:
        loaded = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        return None, f"{path.name} cannot be loaded: {error}"
    if loaded.nf_interface() != INTERFACE:
        return None, f"{path.name} was built from other sources: install normfree again"
    parallel = _parallel_of_torch()
    if parallel is None and torch.get_num_threads() > 1:
        return None, "torch's OpenMP library was not found, and one thread is slower than torch's many"
    loaded.nf_use_threads_of(parallel)
    return loaded, None


def variants() -> tuple[str, ...]:
    """Instruction sets of this processor, the fastest first, as torch says; ``ATEN_CPU_CAPABILITY`` lowers them."""
    best = torch.backends.cpu.get_cpu_capability().lower()
    return _VARIANTS[_VARIANTS.index(best) :] if best in _VARIANTS else _VARIANTS[-1:]


def _file(setting: str) -> Path:
    """The fastest library that was built and runs on this processor, or the one of ``setting``.

    Args:
        setting: the value of ``NORMFREE_KERNELS``: a variant, or "1" for any.

    Raises:
        LookupError: there is none; the reason.
    """
    if setting not in ("1", *_VARIANTS):
        raise LookupError(f"NORMFREE_KERNELS (={setting}) must be 0, 1, {', '.join(_VARIANTS[:-1])} or {_VARIANTS[-1]}")
    runnable = variants()
    if setting != "1" and setting not in runnable:
        raise LookupError(f"NORMFREE_KERNELS is {setting}, and this processor has {runnable[0]} (torch says)")
    folder = Path(__file__).parent
    for name in runnable if setting == "1" else (setting,):
        stem = "_cpu" if name == "default" else f"_cpu_{name}"
        for end in importlib.machinery.EXTENSION_SUFFIXES:
            if (path := folder / f"{stem}{end}").is_file():
                return path
    which = "" if setting == "1" else f" for {setting}"
    raise LookupError(f"the library{which} was not built: no C++ compiler that can at normfree's installation")


def _parallel_of_torch() -> int | None:
    """Address of the GOMP_parallel that torch calls, so that there is one pool of threads.

    Looked up as the dynamic linker did: first among the symbols of the whole process (where a preloaded OpenMP
    library is), then among those that torch's own library depends on.
    """
    torch_library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    for name in (None, str(torch_library)):
        try:
            function = ctypes.CDLL(name).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, ctypes.c_void_p).value
    return None


def eager() -> bool:
    """Whether operations run as they are called: no compiler, tracer, transform or dispatch mode must see them."""
    # names of this module instead of torch's attributes take half the time, and every call of a kernel comes here
    return not (
        _is_compiling()
        or _MISSING is not None
        or _modes()
        or _transforms()
        or _tracing() is not None
        or forward_ad._current_level >= 0
    )


def ordinary(x: Tensor) -> bool:
    """Whether a tensor's values lie in memory as its type says: no subclass, no other layout."""
    return type(x) in _PLAIN and x.layout is _strided and not x.is_neg()


def plain(x: Tensor) -> bool:
    """Whether a tensor is ordinary and in the CPU's memory."""
    return ordinary(x) and x.is_cpu


def dense(x: Tensor) -> bool:
    """Whether a tensor fills its memory, contiguous or channels last."""
    return x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=_channels_last))


def same_layout(x: Tensor, like: Tensor) -> bool:
    """Whether two dense tensors of one shape have their elements in the same order."""
    if x.stride() == like.stride() or (x.is_contiguous() and like.is_contiguous()):
        return True
    last = dict(memory_format=_channels_last)
    return x.ndim == 4 and x.is_contiguous(**last) and like.is_contiguous(**last)


def laid_out(x: Tensor, like: Tensor) -> Tensor:
    """``x`` itself, or a copy whose elements are in the order of ``like``'s; both of one shape, ``like`` dense."""
    return x if same_layout(x, like) else torch.empty_like(like, dtype=x.dtype).copy_(x)
