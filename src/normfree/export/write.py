"""Shared by all formats: fold the network, write the file, compare its outputs with the network's, put it in place."""

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RunFailed, UsageError, check_utf8
from ..version import __version__
from .description import OUTPUTS, PRECISIONS, VECTORS, Deployed, Description, Preprocessing, check_batch, check_classes
from .fold import fold

# relative; float32 networks measure below 3e-6
TOLERANCE = {"float32": 1e-5, "float16": 2e-2, "bfloat16": 1e-1, "int8": 0.2}
# of maps in float32: an up-projection sums 25,600 products per pixel, and there are 70,000 pixels; depth at the papers'
# size measures 2e-5, where the network itself is 1.4e-5 from float64
MAPS = 5e-5


@dataclass(frozen=True)
class Written:
    """An exported file that computes what the network computes.

    Attributes:
        files: ``path``, and beside it the weights where they are too large for one file.
        difference: the largest, relative to the largest output, between the file and the network; of int8 the root
            mean square, relative to that of the outputs.
        kept: layers that are in float32 in an int8 file.
        checked: the numbers of images that were compared.
        outputs: of the network, for each image or pixel.
    """

    path: Path
    files: tuple[Path, ...]
    description: Description
    difference: float
    checked: tuple[int, ...]
    outputs: int
    kept: tuple[str, ...] = ()


class InPrecision(nn.Module):
    """A network in another precision, with inputs and outputs in float32."""

    def __init__(self, network: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.network, self.dtype = network.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.to(self.dtype)).float()


@dataclass(frozen=True)
class Job:
    """A folded network on the CPU, an example input for tracing, and inputs with the original network's outputs."""

    network: nn.Module
    example: Tensor
    description: Description
    checks: list[tuple[Tensor, Tensor]]

    @property
    def dynamic_shapes(self) -> tuple[dict[int, torch.export.Dim]] | None:
        return None if self.description.batch else ({0: torch.export.Dim("batch")},)


@torch.no_grad()
def prepare(
    model: nn.Module,
    *,
    preprocessing: Preprocessing | None = None,
    classes: Sequence[str] | None = None,
    name: str | None = None,
    batch: int | None = None,
    precision: str = "float32",
    opset: int | None = None,
    task: str = "classification",
    targets: Mapping[str, Any] | None = None,
) -> Job:
    """Fold a network, and compute the outputs that its file must give.

    Raises:
        UsageError: an unusable value; a network in training mode, not in float32, or with an output of another task.
    """
    if task not in OUTPUTS:
        raise UsageError(f"task (={task!r}) must be one of {', '.join(OUTPUTS)}")
    if precision not in PRECISIONS:
        raise UsageError(f"precision (={precision!r}) must be one of {', '.join(PRECISIONS)}")
    folded = fold(model).cpu()
    parameter = next(model.parameters(), torch.empty(0))
    if parameter.dtype != torch.float32:
        raise UsageError(
            f"the network is {parameter.dtype}; export takes float32 and turns it into precision={precision!r}"
        )
    preprocessing = preprocessing or Preprocessing.of(model)
    shape = preprocessing.shape
    check_batch(batch, shape)
    noise = torch.Generator().manual_seed(0)
    inputs = [torch.randn(n, *shape, generator=noise) for n in ([batch] if batch else (1, 3))]
    outputs = _outputs(model, [images.to(parameter.device) for images in inputs], task)
    description = Description(
        model=name or (getattr(model, "default_cfg", None) or {}).get("architecture") or type(model).__name__,
        preprocessing=preprocessing,
        classes=check_classes(classes, outputs[0].shape[1]),
        precision=precision,
        batch=batch,
        opset=opset,
        normfree=__version__,
        torch=torch.__version__,
        task=task,
        output=OUTPUTS[task],
        shape=tuple(outputs[0].shape[1:]),
        targets=dict(targets or {}),
    )
    network = folded if precision in ("float32", "int8") else InPrecision(folded, getattr(torch, precision)).eval()
    # traced with two images, because a batch of one would become a constant
    return Job(network, torch.zeros(batch or 2, *shape), description, list(zip(inputs, outputs, strict=True)))


def _outputs(model: nn.Module, inputs: list[Tensor], task: str) -> list[Tensor]:
    """The network's outputs for batches of images, checked for their shape, on the CPU."""
    shape = inputs[0].shape[1:]
    try:
        outputs = [model(images) for images in inputs]
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"the network does not take images of {' x '.join(map(str, shape))}: {reason}") from error
    expected = () if task in VECTORS else shape[1:]
    if not all(isinstance(output, Tensor) and output.ndim > 1 and output.shape[2:] == expected for output in outputs):
        form = ", ".join(map(str, ("N", "outputs", *expected)))
        raise UsageError(
            f"{type(model).__name__} does not return one tensor ({form}); only such networks are exported for {task}"
        )
    return [output.cpu() for output in outputs]


def write_checked(
    path: str | os.PathLike[str], job: Job, write: Callable[[Path], None], read: Callable[[Path], Deployed]
) -> Written:
    """Write a file, run it, compare it with the network, and then put it in place; an incomplete file is removed.

    Raises:
        RunFailed: it cannot be written or run, or computes something else than the network.
    """
    path = Path(path)
    with _folder_beside(path) as folder:
        part = folder / path.name
        try:
            write(part)
        except (OSError, RuntimeError) as error:
            if isinstance(error, RunFailed):
                raise
            raise RunFailed(f"cannot write {path}: {_first_line(error)}") from error
        try:
            differences = _differences(read(part).run, job)
        except Exception as error:  # a runtime may raise any class
            reason = _first_line(error).replace(str(part), path.name)
            raise RunFailed(f"{path} cannot be run and is not kept: {reason}") from error
        limit, worst = TOLERANCE[job.description.precision], max(differences)
        limit = limit if job.description.task in VECTORS else max(limit, MAPS)
        if not all(difference <= limit for difference in differences):  # also refuses NaN
            raise RunFailed(
                f"{path} is not kept: it differs from the network by {worst:.2g} relative, allowed are {limit:g}"
            )
        parts = sorted(folder.iterdir(), key=lambda file: file == part)  # last: the file that refers to the others
        for file in parts:
            os.replace(file, path.parent / file.name)
    files = tuple(path.parent / file.name for file in reversed(parts))
    checked, outputs = tuple(len(images) for images, _ in job.checks), job.checks[0][1].shape[1]
    return Written(path, files, job.description, worst, checked, outputs)


def check_place(path: str | os.PathLike[str], suffix: str) -> None:
    """Check early that a file can be written.

    Raises:
        UsageError: another suffix; a folder that does not exist or cannot be written to.
    """
    path = Path(path)
    if path.suffix != suffix:
        raise UsageError(f"{path} must end in {suffix}")
    check_utf8(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give a file's name")
    with _folder_beside(path):
        pass


@contextlib.contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """An empty folder on the same disk, removed afterwards."""
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: folder {path.parent} does not exist")
    try:
        temporary = tempfile.TemporaryDirectory(
            dir=path.parent, prefix=f".{path.name}.part", ignore_cleanup_errors=True
        )
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    with temporary as folder:
        yield Path(folder)


def _differences(run: Callable[[Tensor], Tensor], job: Job) -> list[float]:
    """The difference of each check, relative to its outputs: see :class:`Written`."""
    if job.description.precision == "int8":  # rounding errors, many and independent: their power is what is bounded
        return [((run(images) - expected).norm() / expected.norm()).item() for images, expected in job.checks]
    return [
        ((run(images) - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()
        for images, expected in job.checks
    ]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the exporter's log lines and deprecation warnings, which are about torch's own code."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch 2.11 reading its own archives
            yield
    finally:
        logging.disable(disabled)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
