"""Files of volumes and of their masks: NumPy arrays (.npy, .npz) and NIfTI (.nii, .nii.gz), by nibabel."""

import gzip
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..files import regular, whole_file
from ..limits import MAX_VOLUME_VALUES
from .decode import UnreadableImage, named
from .masks import MAX_VALUE, MaskValues

NUMPY, NIFTI = (".npy", ".npz"), (".nii", ".nii.gz")
ENDINGS = (*NUMPY, *NIFTI)
SPACING = "spacing"  # the entry of an .npz file with three numbers in mm
_MILLIMETRES = dict(meter=1e3, micron=1e-3)  # of NIfTI's units; others are mm
Shape = tuple[int, int, int]
Spacing = tuple[float, ...]  # three numbers of mm


@dataclass(frozen=True)
class Header:
    """What a file says about its volume, along the axes in which volumes are used.

    A NIfTI file is used along the axes that its affine brings nearest to right, anterior and superior, however it is
    stored; other files are used as they are stored.

    Attributes:
        shape: of three axes, or four with channels.
        width: bytes that a value takes once it is read.
        spacing: mm between voxels along the axes of places; None: not known.
        affine: (4, 4) from voxels to mm in space; None: not known.
    """

    shape: tuple[int, ...]
    width: int
    spacing: Spacing | None = None
    affine: np.ndarray | None = None

    def places(self, channels: int, path: str) -> Shape:
        """(D, H, W) of a volume of so many channels; UnreadableImage if it has others."""
        axis = _channel_axis(self.shape, channels, path)
        depth, height, width = (size for i, size in enumerate(self.shape) if i != axis)
        return depth, height, width


def ending(path: str | Path) -> str:
    """Which of ENDINGS a file has; "" if none.

    >>> ending("scans/a.b.NII.gz")
    '.nii.gz'
    """
    name = str(path).lower()
    return next((one for one in ENDINGS if name.endswith(one)), "")


def base_name(path: str | Path) -> str:
    """The name of a file without folder and ending.

    >>> base_name("scans/a.b.nii.gz")
    'a.b'
    """
    name = Path(path).name
    return name[: len(name) - len(ending(path))] or name


def read_header(path: str) -> Header:
    """The header of a file; its values are not read.

    Raises:
        UnreadableImage: not there, of another kind, or not a volume of numbers.
        UsageError: it needs nibabel, which is not installed.
    """
    if ending(path) in NIFTI:
        return _Nifti(path).header
    with named(path):
        return _numpy(path, values=False)[0]


def read_volume(path: str, channels: int = 1) -> Tensor:
    """The values of a file as (channels, D, H, W), in a type that keeps them: integers, or float32.

    Raises:
        UnreadableImage: as :func:`read_header`; another number of channels, or values that are not finite.
    """
    values = _values(path)
    axis = _channel_axis(values.shape, channels, path)
    values = values[None] if axis is None else np.moveaxis(values, axis, 0)
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):  # beyond float32's range is not finite either
            values = values.astype(np.float32)
        if not (fine := np.isfinite(values)).all():
            wrong = f"{int((~fine).sum()):,} of its {values.size:,} values are not finite"
            raise UnreadableImage(f"{path}: {wrong}")
    return torch.from_numpy(np.ascontiguousarray(values.astype(_torch_type(values.dtype), copy=False)))


def read_mask(path: str, classes: MaskValues) -> Tensor:
    """The (D, H, W) int64 classes in a file; IGNORE for ignored voxels.

    Raises:
        UnreadableImage: as :func:`read_header`; it has channels, or a value that is no class.
    """
    values = _values(path)
    axis = _channel_axis(values.shape, 1, path)
    values = values if axis is None else values.take(0, axis)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= MAX_VALUE) or (values.dtype.kind == "f" and (values != np.rint(values)).any()):
        what = f"values from {low:g} to {high:g}, not all integers" if low >= 0 else f"a value of {low:g}"
        raise UnreadableImage(f"{path}: {what}; a mask holds the number of the class at each voxel, 0 to {MAX_VALUE:,}")
    return classes.classes_of(values.astype(np.int64), path)


def write_mask(path: str | Path, values: np.ndarray, like: str) -> None:
    """Write (D, H, W) values with the affine and the axes of another file, or its spacing.

    Args:
        path: ends as ``like``; .nii and .nii.gz, .npy and .npz may take each other's place.
        values: uint8 or uint16 along the axes of :class:`Header`.

    Raises:
        RunFailed: it cannot be written.
    """
    kind, file = ending(path), io.BytesIO()
    if kind == ".npy":
        np.save(file, values)
    elif kind == ".npz":
        spacing = read_header(like).spacing
        arrays: dict[str, Any] = dict(mask=values) | ({} if spacing is None else {SPACING: np.array(spacing)})
        np.savez_compressed(file, **arrays)
    else:
        content = _Nifti(like).with_values(values)
        file.write(gzip.compress(content, 6, mtime=0) if kind == ".nii.gz" else content)
    with whole_file(path) as part:
        part.write_bytes(file.getbuffer())


def need_nibabel(paths: Sequence[str | Path]) -> None:
    """Check early that these files can be read.

    Raises:
        UsageError: one is a NIfTI file, and nibabel is not installed.
    """
    if (path := next((path for path in paths if ending(path) in NIFTI), None)) is not None:
        _nibabel(path)


class _Nifti:
    """A NIfTI file whose values are not read yet."""

    def __init__(self, path: str):
        self.library = _nibabel(path)
        with named(path):
            image = self.library.load(regular(path))
            if not isinstance(image, self.library.Nifti1Image):
                raise ValueError("not a NIfTI file")
            shape = image.shape
            while len(shape) > 3 and shape[-1] == 1:
                shape = shape[:-1]
            _check(shape, image.get_data_dtype())
            scaled = image.dataobj.slope != 1 or image.dataobj.inter != 0
            self.width = 4 if scaled else _width(image.get_data_dtype())
            self.turn = self.library.io_orientation(image.affine)
            if not np.isfinite(image.affine).all() or not np.isfinite(self.turn).all():
                raise ValueError(f"its affine {image.affine.tolist()} places no voxels in space")
            self.image, self.shape, self.path = image, shape, path

    @property
    def header(self) -> Header:
        order = np.argsort(self.turn[:, 0])  # the stored axis of each used one
        stored = self.library.affines.voxel_sizes(self.image.affine)
        stored = stored * _MILLIMETRES.get(self.image.header.get_xyzt_units()[0], 1.0)
        spacing = tuple(round(float(stored[axis]), 6) for axis in order)
        back = self.library.orientations.inv_ornt_aff(self.turn, self.shape[:3])
        shape = (*(self.shape[axis] for axis in order), *self.shape[3:])
        return Header(shape, self.width, spacing, self.image.affine @ back)

    def values(self) -> np.ndarray:
        with named(self.path):
            values = np.asanyarray(self.image.dataobj).reshape(self.shape)
            return self.library.apply_orientation(values, self.turn)

    def with_values(self, values: np.ndarray) -> bytes:
        """The same file with another volume, (D, H, W) along the used axes."""
        stored = self.library.apply_orientation(values, _inverse(self.turn))
        header = self.image.header.copy()
        header.set_data_dtype(values.dtype)
        header["cal_min"] = header["cal_max"] = 0
        return type(self.image)(stored, self.image.affine, header).to_bytes()


def _inverse(turn: np.ndarray) -> np.ndarray:
    """The orientation that undoes another one: axis ``turn[i, 0]`` becomes axis i again, mirrored alike."""
    back = np.empty_like(turn)
    for axis, (used, flip) in enumerate(turn):
        back[int(used)] = axis, flip
    return back


def _nibabel(path: str | Path) -> Any:
    try:
        import nibabel  # half a second to import, needed for these files only
    except ImportError as error:
        raise UsageError(f'{path} is a NIfTI file, which needs nibabel; pip install "normfree[volumes]"') from error
    return nibabel


def _values(path: str) -> np.ndarray:
    """The stored values, three axes or four, along the used axes."""
    if ending(path) in NIFTI:
        return _Nifti(path).values()
    with named(path):
        return _numpy(path, values=True)[1]


def _numpy(path: str, *, values: bool) -> tuple[Header, np.ndarray]:
    """The header of a file of arrays, and its array; without ``values`` an empty one."""
    if ending(path) not in NUMPY:
        raise ValueError(f"not a volume; its name must end in {', '.join(ENDINGS)}")
    if ending(path) == ".npy":
        with open(regular(path), "rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            shape, width, array = _array(file, values, size)
            return Header(shape, width), array
    with zipfile.ZipFile(regular(path)) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        arrays = [name for name in names if name != SPACING]
        if len(arrays) != 1:
            held = ", ".join(names[:8]) or "no array"
            raise ValueError(f"it holds {held}; it must hold one volume or mask, and may hold its {SPACING}")
        size = archive.getinfo(f"{arrays[0]}.npy").file_size
        with archive.open(f"{arrays[0]}.npy") as file:
            shape, width, array = _array(file, values, size)
        return Header(shape, width, _spacing(archive) if SPACING in names else None), array


def _array(file: Any, values: bool, size: int) -> tuple[tuple[int, ...], int, np.ndarray]:
    """Shape of an array of ``size`` bytes with its header, bytes of a value once it is read, and the array."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    _check(shape, dtype)
    needed = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if needed > size:  # else that much memory is asked for first
        raise ValueError(f"truncated: it ends within its {needed:,} bytes of numbers")
    if not values:
        return shape, _width(dtype), np.empty(0)
    file.seek(0)
    return shape, _width(dtype), np.lib.format.read_array(file, allow_pickle=False)


def _spacing(archive: zipfile.ZipFile) -> Spacing:
    with archive.open(f"{SPACING}.npy") as file:
        found = np.lib.format.read_array(io.BytesIO(file.read(2**12)), allow_pickle=False).ravel()
    if found.shape != (3,) or found.dtype.kind not in "uif" or not (np.isfinite(found) & (found > 0)).all():
        raise ValueError(f"its {SPACING} (={found.tolist()!s:.80}) must be three numbers above 0, in mm")
    return tuple(found.astype(float).tolist())


def _check(shape: Sequence[int], dtype: np.dtype) -> None:
    size = int(np.prod(shape, dtype=object))
    if len(shape) not in (3, 4) or dtype.kind not in "buif" or not size:
        what = f"an array of shape {tuple(shape)} of {dtype}"
        raise ValueError(f"{what}; a volume is (D, H, W), (D, H, W, C) or (C, D, H, W) numbers")
    if size > MAX_VOLUME_VALUES:
        raise ValueError(f"{size:,} values, more than the limit of {MAX_VOLUME_VALUES:,}")


def _channel_axis(shape: Sequence[int], channels: int, path: str) -> int | None:
    """Which axis has the channels: the last or the first; None if there is none."""
    if len(shape) == 3:
        count, axis = 1, None
    else:
        axis = next((axis for axis in (3, 0) if shape[axis] == channels), None)
        count = channels if axis is not None else min(shape[0], shape[3])
    if count != channels:
        found = f"{count} channel{'' if count == 1 else 's'}"
        raise UnreadableImage(f"{path}: shape {tuple(shape)}, so {found}; {channels} needed here")
    return axis


def _width(dtype: np.dtype) -> int:
    return np.dtype(_torch_type(dtype)).itemsize


def _torch_type(dtype: np.dtype) -> Any:
    """The smallest type that holds the values and that torch computes with."""
    if dtype.kind == "f":
        return np.float32
    known = {"b1": np.uint8, "u1": np.uint8, "i1": np.int16, "u2": np.int32, "i2": np.int16, "i4": np.int32}
    return known.get(dtype.str[1:], np.int64)
