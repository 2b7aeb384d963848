"""Reading pickles of numpy arrays without running any code in them.

The authors' ``.npz`` files are pickles, not archives: ``{module: {name: array}}``, written by dill. A pickle may name
any callable of any module; here the few names of which numpy's arrays consist are replaced by stand-ins that only check
and keep their arguments, and every other name is refused.
"""

import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from ..files import regular
from ..limits import MAX_SHARING
from .pickles import are_axes, check_names, check_opcodes, full_name, one_line, shown

_KINDS = "fiub"  # float, int, unsigned, bool
_MAX_OPCODES = 250_000  # a ResNet-600 with running statistics takes 193,000


class _Dtype:
    """A numeric dtype, as numpy pickles it: ``dtype('f4', False, True)``, then a state with the byte order."""

    def __init__(self, spec: Any, *flags: Any):
        if not isinstance(spec, str) or len(spec) > 8:
            raise pickle.UnpicklingError(f"a dtype {shown(spec)} is not numeric")
        self.dtype = np.dtype(spec)
        if self.dtype.kind not in _KINDS:
            raise pickle.UnpicklingError(f"dtype {self.dtype} is not numeric")

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1] if state[1] in ("<", ">") else "=")


class _Array:
    """An array in the course of reading: first empty, then with its state."""

    def __init__(self) -> None:
        self.value: np.ndarray | None = None

    def fill(self, shape: Any, dtype: Any, data: Any, fortran: Any = False) -> "_Array":
        if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, bytearray)):
            raise pickle.UnpicklingError("an array is not made of numbers")
        if not are_axes(shape):
            raise pickle.UnpicklingError("the shape of an array is not a tuple of a few sizes")
        if math.prod(shape) * dtype.dtype.itemsize != len(data):
            raise pickle.UnpicklingError(f"array of shape {shape} has {len(data)} bytes of {dtype.dtype}")
        self.value = np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if fortran else "C")
        self.value.flags.writeable = False
        return self

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.fill(shape, dtype, data, fortran)


class _ArrayUnpickler(pickle.Unpickler):
    """Resolves only the names below. The stand-ins are made per file, so that no file can change the next one."""

    def __init__(self, file: Any, max_bytes: int):
        """``max_bytes``: limit of the bytes that the file's texts are converted to."""
        super().__init__(file)
        encoded = 0

        def reconstruct(*args: Any) -> _Array:
            return _Array()

        def from_buffer(data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> _Array:
            array = _Array().fill(shape, dtype, data, order == "F")
            if axes is not None and array.value is not None:  # neither C nor Fortran order: transposed after reading
                array.value = array.value.transpose(axes)
            return array

        def create_array(function: Any, args: Any, state: Any, attributes: Any = None) -> _Array:
            if function is not reconstruct or attributes is not None:
                raise pickle.UnpicklingError("an array is of a class of its own")
            array = reconstruct()
            array.__setstate__(state)
            return array

        def scalar(dtype: Any, data: Any) -> _Array:
            return _Array().fill((), dtype, data)

        def encode(text: Any, encoding: Any) -> bytes:  # how protocols 0 to 2 write bytes
            if not isinstance(text, str) or encoding != "latin1":
                raise pickle.UnpicklingError("text stands where an array's bytes should")
            nonlocal encoded
            encoded += len(text)
            if encoded > max_bytes:  # in a valid file, each text is used as often as it is written
                raise pickle.UnpicklingError("its arrays hold more bytes than the file")
            return text.encode("latin1")

        def dtype(*args: Any) -> _Dtype:
            return _Dtype(*args)

        def ndarray(*args: Any) -> None:
            raise pickle.UnpicklingError("numpy.ndarray is called; arrays are read by their state only")

        self._names: dict[str, Callable[..., Any]] = {
            "numpy.ndarray": ndarray,
            "numpy.dtype": dtype,
            "_codecs.encode": encode,
        }
        self._names["dill._dill._create_array"] = create_array  # dill's way around numpy's own
        for core in ("numpy.core", "numpy._core"):
            self._names[f"{core}.multiarray._reconstruct"] = reconstruct
            self._names[f"{core}.multiarray.scalar"] = scalar
            self._names[f"{core}.numeric._frombuffer"] = from_buffer

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        full = full_name(module, name)
        if full not in self._names:
            raise pickle.UnpicklingError(f"it names {full!r:.100}, which is no numpy array")
        return self._names[full]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to an object outside of itself")


def read_arrays(path: str | Path) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of a pickle ``{module: {name: array}}``: numbers only, read-only views of the file's bytes.

    Raises:
        UsageError: no such file; truncated; not such a pickle; anything but dicts, strings and numeric arrays in it.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "weights.npz")
        ...     _ = path.write_bytes(pickle.dumps({"linear": {"w": np.ones((2, 3), np.float32)}}))
        ...     read_arrays(path)["linear"]["w"].shape
        (2, 3)
    """
    path = Path(path)
    try:
        with regular(path).open("rb") as file:
            check_opcodes(file, _MAX_OPCODES)
            file.seek(0)
            size = os.fstat(file.fileno()).st_size
            content = _ArrayUnpickler(file, size).load()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except EOFError as error:
        raise UsageError(f"{path} is truncated: the pickle in it does not end") from error
    except MemoryError as error:
        raise UsageError(f"{path} asks for more memory than there is; it is not a file of weights") from error
    except Exception as error:  # a hostile or broken stream can fail in any way; no code of it has run
        raise UsageError(f"{path} is truncated or not a pickle of numpy arrays: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds {type(content).__name__}, not a mapping of modules")
    arrays: dict[str, dict[str, np.ndarray]] = {}
    total = 0
    for module, parameters in content.items():
        if not isinstance(module, str) or not isinstance(parameters, dict):
            raise UsageError(f"{path}: entry {shown(module)} is not a module with a mapping of parameters")
        arrays[module] = {}
        for name, array in parameters.items():
            if not isinstance(name, str) or not isinstance(array, _Array) or array.value is None:
                raise UsageError(f"{path}: {module}/{shown(name)} is not a numpy array")
            arrays[module][name] = array.value
            total += array.value.nbytes
            if total > MAX_SHARING * size:
                raise UsageError(f"{path}: its arrays hold more than {MAX_SHARING} times the bytes of the file")
        check_names(parameters, path)
    return check_names(arrays, path)
