"""ONNX files: writing a folded network with torch's exporter, checking it in onnxruntime, and opening the file."""

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RunFailed, UsageError, check_utf8
from .description import KEY, Deployed, Description, Preprocessing, deployed
from .int8 import Calibration, exact_sums, on_images, write_int8
from .protobuf import OnnxFile
from .seal import data_file, seal, sealed
from .write import Job, Written, check_place, prepare, quiet, write_checked

OPSET, OLDEST_OPSET = 20, 18  # the first with Gelu; the oldest that torch's exporter writes
EXTERNAL_ABOVE = 1_800_000_000  # bytes of weights; one protobuf message holds at most 2 GiB


def to_onnx(
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
    opset: int = OPSET,
    calibration: Calibration | None = None,
) -> Written:
    """Write a network, folded, as an ONNX file: ``image`` (batch, C, H, W) -> ``logits`` (batch, outputs).

    The file has a description (metadata "normfree"), and is checked in onnxruntime before it is put in place. Weights
    above 1.8 GB go into a second file beside it, ``path`` + ".data".

    >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    >>> path = Path(tempfile.mkdtemp()) / "model.onnx"
    >>> written = to_onnx(model, path, preprocessing=Preprocessing(8, 3, mean=[0.5] * 3, std=[0.25] * 3))
    >>> open_onnx(path).run(torch.zeros(5, 3, 8, 8)).shape, weight_arithmetic(path), operators(path)["Gemm"]
    (torch.Size([5, 2]), [], 1)

    Args:
        model: in evaluation mode, float32.
        preprocessing: None takes that of a model of :func:`normfree.create_model`, at its test size.
        classes, name: names of the outputs, and of the network; None for ``name`` takes its own.
        task, targets: see :class:`.Description`; "segmentation" and "depth" return (batch, outputs, H, W).
        batch: a fixed number of images per call; None: any number.
        precision: "float32", "float16" or "int8"; input and output are always float32.
        opset: 18 or newer.
        calibration: images that an int8 file is calibrated on.

    Raises:
        UsageError: an unusable value; onnx, onnxscript or onnxruntime is not installed.
        RunFailed: the file cannot be written or run, or its outputs differ; it is not kept.
    """
    check_onnx(path, precision, opset)
    if (precision == "int8") != (calibration is not None):
        raise UsageError(f"precision (={precision!r}) {'needs' if calibration is None else 'takes no'} calibration=")
    job = prepare(
        model,
        preprocessing=preprocessing,
        classes=classes,
        name=name,
        task=task,
        targets=targets,
        batch=batch,
        precision=precision,
        opset=opset,
    )
    if calibration is None:
        return write_checked(path, job, lambda part: _write(job, part, path), open_onnx)
    job, kept = on_images(job, calibration), list[str]()

    def write(part: Path) -> None:
        with TemporaryDirectory() as folder:
            _write(job, float32 := Path(folder) / "float32.onnx", path)
            if data_file(float32).exists():
                raise UsageError(f"{path} would have weights above 1.8 GB in float32; int8 files are for smaller ones")
            kept.extend(write_int8(float32, part, job.description.batch, calibration))

    return replace(write_checked(path, job, write, open_onnx), kept=tuple(kept))


def check_onnx(path: str | os.PathLike[str], precision: str = "float32", opset: int = OPSET) -> None:
    """Check early that an ONNX file can be written.

    Raises:
        UsageError: the reason.
    """
    if precision == "bfloat16":
        raise UsageError(
            "precision (='bfloat16') is nothing that onnxruntime convolves in; use float16, or an archive (pt2)"
        )
    if not isinstance(opset, int) or opset < OLDEST_OPSET:
        raise UsageError(f"opset (={opset!r}) must be an integer of at least {OLDEST_OPSET}")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        _import(package)
    check_place(path, ".onnx")


def _write(job: Job, part: Path, path: str | os.PathLike[str]) -> None:
    opset = job.description.opset
    try:
        with quiet():
            program = torch.onnx.export(
                job.network,
                (job.example,),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                dynamic_shapes=job.dynamic_shapes,
                input_names=["image"],
                output_names=[job.description.output],
            )
    except torch.onnx.OnnxExporterError as error:
        raise RunFailed(f"cannot write {path}: torch's exporter fails: {str(error).splitlines()[0]}") from error
    assert program is not None  # torch returns None of its older exporter alone
    written = program.model.opset_imports[""]
    if written != opset:  # the exporter keeps its own opset where it cannot convert
        raise UsageError(
            f"opset (={opset}) cannot be written by torch {torch.__version__} for this network, {written} can"
        )
    program.model.metadata_props[KEY] = job.description.to_json()
    for node in program.model.graph:
        node.metadata_props.clear()  # stack traces, which hold this computer's paths
    for weight in program.model.graph.initializers.values():
        weight.type = weight.shape = weight.doc_string = None  # the tensor says it; a quantizer changes that alone
        weight.metadata_props.clear()
    size = sum(tensor.numel() * tensor.element_size() for tensor in job.network.state_dict().values())
    program.save(part, external_data=size > EXTERNAL_ABOVE)
    seal(part)


def open_onnx(path: str | os.PathLike[str]) -> Deployed:
    """A file of :func:`to_onnx` in onnxruntime, on the CPU.

    Raises:
        UsageError: missing, not ONNX, not written by normfree, not as it was written, or onnxruntime is not installed.
    """
    runtime = _import("onnxruntime")
    check_utf8(path)
    if not Path(path).is_file():
        raise UsageError(f"{path} does not exist; give an ONNX file of normfree export")
    file = OnnxFile(Path(path))  # before onnxruntime sees it
    text = next((value for name, value, _ in file.metadata() if name == KEY), None)
    if text is None:
        raise UsageError(f"{path} does not say how its images are prepared; it was not written by normfree export")
    has_checksum = sealed(Path(path), file)
    file.check_operators()
    description = Description.from_json(text.decode(errors="replace"), str(path))
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # no log: errors are raised, and they quote the file
    exact_sums(options)
    try:
        session = runtime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes, one for each of its codes
        raise UsageError(f"{path} cannot be opened by onnxruntime: {str(error).splitlines()[0]}") from error
    image, *others = session.get_inputs()
    if others or image.type != "tensor(float)" or len(session.get_outputs()) != 1:
        raise UsageError(f"{path} takes or gives something else than images and one answer")
    description.check_input(image.shape, str(path))

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {image.name: images.numpy()})[0])

    return deployed(description, run, str(path), has_checksum)


def weight_arithmetic(path: str | os.PathLike[str]) -> list[str]:
    """The nodes of an ONNX file that compute from constants alone, as ``Mul node_name``; a folded network has none."""
    graph = _import("onnx").load(os.fspath(path), load_external_data=False).graph
    constant, nodes = {tensor.name for tensor in graph.initializer}, []
    for node in graph.node:  # in an order in which inputs come first
        inputs = {name for name in node.input if name}
        if inputs <= constant:
            constant.update(node.output)
            nodes += [f"{node.op_type} {node.name}"] if inputs else []
    return nodes


def operators(path: str | os.PathLike[str]) -> dict[str, int]:
    """How many nodes of each operator an ONNX file has."""
    counts: dict[str, int] = {}
    for node in _import("onnx").load(os.fspath(path), load_external_data=False).graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def _import(package: str) -> ModuleType | Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UsageError(f'ONNX files need the package {package}: pip install "normfree[onnx]"') from error
