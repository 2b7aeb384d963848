"""Archives of ``torch.export`` (.pt2): a folded network that PyTorch runs without normfree; and such a file opened."""

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError, check_utf8
from .checked import Job, Written, check_place, prepare, quiet, write_checked
from .description import KEY, Deployed, Description, Preprocessing
from .seal import seal, sealed


def to_archive(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    preprocessing: Preprocessing | None = None,
    classes: Sequence[str] | None = None,
    name: str | None = None,
    task: str = "classification",
    targets: Mapping[str, Any] | None = None,
    batch: int | None = None,
    precision: str = "float32",
) -> Written:
    """Write a network, folded, as an archive of ``torch.export``: (batch, C, H, W) -> (batch, outputs).

    The file describes itself (extra file "normfree") and is loaded and run before it is put in place.

    Args:
        model: in evaluation mode, float32.
        preprocessing: None takes what a model of :func:`normfree.create_model` says, at its test size.
        classes: names of the outputs.
        name: of the network; None takes its own.
        task: "segmentation" or "depth" for (batch, outputs, H, W), as of :class:`.DenseNet`.
        targets: how the true answers of images are stored, see :class:`.Description`.
        batch: a fixed number of images per call; None leaves it open.
        precision: "float32", "float16" or "bfloat16"; input and output are float32 in any.

    Raises:
        UsageError: an unusable value.
        RunFailed: the file cannot be written, or computes something else; it is not kept.
    """
    check_place(path, ".pt2")
    described = dict(preprocessing=preprocessing, classes=classes, name=name, task=task, targets=targets)
    job = prepare(model, **described, batch=batch, precision=precision)
    return write_checked(path, job, lambda part: _write(job, part), open_archive)


def _write(job: Job, part: Path) -> None:
    with quiet():
        program = torch.export.export(job.network, (job.example,), dynamic_shapes=job.dynamic_shapes)
        program.example_inputs = None  # or they are stored, pickled
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # holds this computer's paths
        torch.export.save(program, part, extra_files={KEY: job.description.to_json()})
    seal(part)


def open_archive(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Deployed:
    """A file of :func:`to_archive`.

    torch reads parts of an archive by pickle, which can run code: open archives that you trust.

    Raises:
        UsageError: missing, no archive, not written by normfree, or not as it was written.
    """
    path = Path(path)
    check_utf8(path)
    if not path.is_file():
        raise UsageError(f"{path} does not exist; give an archive of normfree export")
    checked = sealed(path)  # first: damaged files and other files are not even loaded
    description = Description.from_json(_text(path), str(path))
    try:
        with quiet():
            program = torch.export.load(path)
            if torch.device(device).type != "cpu":
                program = torch.export.passes.move_to_device_pass(program, device)
    except Exception as error:  # a damaged archive fails in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{path} cannot be loaded by torch {torch.__version__}: {reason}") from error
    network = program.module()

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            return network(images.to(device)).cpu()

    return Deployed(description, run, checked)


def _text(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((name for name in archive.namelist() if name.endswith(f"/extra/{KEY}")), None)
            if name is not None:
                return archive.read(name).decode()
    except (OSError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as an archive of torch.export: {error}") from error
    raise UsageError(f"{path} does not say how its images are prepared; it was not written by normfree export")
