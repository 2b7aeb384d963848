"""Archives of ``torch.export`` (.pt2), which PyTorch runs without normfree: writing and opening one."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from ..errors import UsageError, check_utf8
from .contents import check_contents, description_in
from .description import KEY, Deployed, Description, Preprocessing, deployed
from .seal import seal, sealed
from .write import Job, Written, check_place, prepare, quiet, write_checked


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

    The file has a description (extra file "normfree"), and is loaded and checked before it is put in place.

    >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    >>> path = Path(tempfile.mkdtemp()) / "model.pt2"
    >>> written = to_archive(model, path, preprocessing=Preprocessing(8, 3, mean=[0.5] * 3, std=[0.25] * 3))
    >>> open_archive(path).run(torch.zeros(5, 3, 8, 8)).shape
    torch.Size([5, 2])

    Args:
        model: in evaluation mode, float32.
        preprocessing: None takes that of a model of :func:`normfree.create_model`, at its test size.
        classes, name: names of the outputs, and of the network; None for ``name`` takes its own.
        task, targets: see :class:`.Description`; "segmentation" and "depth" return (batch, outputs, H, W).
        batch: a fixed number of images per call; None: any number.
        precision: "float32", "float16" or "bfloat16"; input and output are always float32.

    Raises:
        UsageError: an unusable value.
        RunFailed: the file cannot be written, or its outputs differ; it is not kept.
    """
    check_place(path, ".pt2")
    if precision == "int8":
        raise UsageError("precision (='int8') is for ONNX files (to_onnx), not for archives")
    job = prepare(
        model,
        preprocessing=preprocessing,
        classes=classes,
        name=name,
        task=task,
        targets=targets,
        batch=batch,
        precision=precision,
    )
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

    torch unpickles parts of other archives and evaluates text in them. The content is therefore checked first (see
    :mod:`.contents`), and an archive with anything of that kind is not opened.

    Raises:
        UsageError: missing, no archive, not written by normfree, or not as it was written.
    """
    path = Path(path)
    check_utf8(path)
    if not path.is_file():
        raise UsageError(f"{path} does not exist; give an archive of normfree export")
    has_checksum = sealed(path)  # first, so that damaged files are not loaded
    description = Description.from_json(description_in(path), str(path))
    check_contents(path)
    try:
        with quiet():
            program = torch.export.load(path)
            if torch.device(device).type != "cpu":
                program = move_to_device_pass(program, device)
            network, shape = program.module(), _input_shape(program)
    except Exception as error:  # a damaged archive fails in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise UsageError(f"{path} cannot be loaded by torch {torch.__version__}: {reason}") from error
    description.check_input(shape, str(path))

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            return network(images.to(device)).cpu()

    return deployed(description, run, str(path), has_checksum)


def _input_shape(program: torch.export.ExportedProgram) -> list[Any]:
    """The shape of the only input that is not a weight."""
    (name,) = program.graph_signature.user_inputs
    (node,) = (node for node in program.graph.nodes if node.op == "placeholder" and node.name == name)
    return list(node.meta["val"].shape)
