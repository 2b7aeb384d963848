"""``normfree export``."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..export import Written, to_archive, to_onnx
from ..export.description import PRECISIONS
from ..export.onnx_file import OPSET, check_onnx
from ..export.write import TOLERANCE, check_place
from ..limits import MAX_BATCH_SIZE, MAX_INPUT_SIDE
from ..runs.deployable import open_deployable, open_trained
from ..runs.exported import ARCHIVE, ONNX
from ..runs.outputs import check_output
from ..runs.quantized import IMAGES, CalibrationOptions, Quantized
from ..words import tell
from .parser import Parser

SUFFIXES = {"onnx": ONNX, "pt2": ARCHIVE}


def run(argv: Sequence[str]) -> int:
    """Write a network, folded and checked, for ONNX runtimes or for PyTorch without this library."""
    options = _parser().parse_args(list(argv))
    path, kind = _place(options)
    if options.size is not None and not 1 <= options.size <= MAX_INPUT_SIDE:
        raise UsageError(f"--size (={options.size}) must be from 1 to {MAX_INPUT_SIDE}")
    settings: dict[str, Any] = dict(batch=_batch(options.batch), precision=options.precision)
    if kind == "onnx":  # all that can be known before weights are fetched
        settings["opset"] = OPSET if options.opset is None else options.opset
        check_onnx(path, options.precision, settings["opset"])
    elif options.opset is not None:
        raise UsageError(f"--opset is for --format onnx, not for {kind}")
    else:
        check_place(path, ARCHIVE)
    check_output("--out", path, SUFFIXES.values(), [options.network])
    int8 = _calibration(options, kind)
    trained = open_trained(options.network, options.checkpoint)
    network = open_deployable(options.network, options.checkpoint, random=options.random, trained=trained)
    preprocessing = network.preprocessing
    if options.size is not None:
        depth = None if preprocessing.depth is None else options.size
        preprocessing = replace(preprocessing, size=options.size, width=None, depth=depth)
    settings |= dict(preprocessing=preprocessing, classes=network.classes, name=network.name)
    settings |= dict(task=network.task.kind, targets=network.targets)
    quantized = None if int8 is None else Quantized(network, trained, int8, options.size, _say)
    if quantized is not None:
        settings["calibration"] = quantized.calibration
    tell(f"exporting {network.name} ({network.origin}) ...", file=sys.stderr)
    written = (to_onnx if kind == "onnx" else to_archive)(network.model, path, **settings)
    lines = _report(written, "onnxruntime" if kind == "onnx" else "torch.export.load")
    tell(*lines[:-1], *([] if quantized is None else quantized.report(written)), lines[-1])
    return 0


def _parser() -> Parser:
    parser = Parser(
        "export",
        description="Write a network, folded into plain convolutions, as one file that other runtimes read. The file "
        "says how images are prepared and what the classes are called, and is compared with the network before it "
        "is put in place.",
    )
    add = parser.add_argument
    add("network", metavar="NETWORK", help="run folder, file of weights, or a model's name")
    add("--format", choices=list(SUFFIXES), help="default: what --out ends in, else onnx")
    add(
        "--out",
        metavar="FILE",
        help="or a folder that is there; default: NAME.onnx of the run or model, in the current folder",
    )
    add("--size", type=int, metavar="PX", help="side of the images; default: the network's test size")
    add("--checkpoint", choices=["last", "best"], help="of a run folder; default: last")
    add(
        "--batch-size",
        "--batch",
        dest="batch",
        metavar="N",
        default="dynamic",
        help="images per call: dynamic or a number; default: dynamic",
    )
    add("--precision", choices=PRECISIONS, default="float32", help="of weights and arithmetic; default: float32")
    add(
        "--calibrate",
        metavar="DATA",
        help="of int8: images that show how large activations are, a source as `normfree train --data` takes, or a "
        "folder of images; default: the run's training images",
    )
    add("--calibrate-images", type=int, metavar="N", help=f"of int8: how many of them, default: {IMAGES}")
    add(
        "--keep-within",
        type=float,
        metavar="POINTS",
        help="of int8: percentage points that the accuracy may fall; layers stay in float32 until it holds",
    )
    add("--no-bias-correction", action="store_true", help="of int8: leave the biases as they are")
    add("--opset", type=int, metavar="N", help=f"ONNX operator set; default: {OPSET}")
    add("--random", action="store_true", help="a model by name with fresh weights, to measure its speed")
    return parser


def _place(options: argparse.Namespace) -> tuple[Path, str]:
    """The file and its format."""
    if options.out and os.path.isdir(options.out):
        path, kind = _place(argparse.Namespace(**vars(options) | dict(out=None)))
        return Path(options.out) / path, kind
    suffix = Path(options.out).suffix if options.out else None
    kind = options.format or next((kind for kind, ending in SUFFIXES.items() if ending == suffix), None)
    if kind is None and options.out:
        raise UsageError(f"--out {options.out} must end in {' or '.join(SUFFIXES.values())}")
    kind = kind or "onnx"
    if options.out and suffix != SUFFIXES[kind]:
        raise UsageError(f"--out {options.out} must end in {SUFFIXES[kind]} for --format {kind}")
    if options.out:
        return Path(options.out), kind
    path = Path(options.network)
    name = path.stem if path.suffix == ".safetensors" else path.resolve().name if path.exists() else options.network
    return Path((re.sub(r"[^\w.-]+", "-", name).strip("-.") or "network") + SUFFIXES[kind]), kind


def _calibration(options: argparse.Namespace, kind: str) -> CalibrationOptions | None:
    """What is chosen about int8; None for other precisions."""
    if options.precision == "int8":
        if kind != "onnx":
            raise UsageError(f"--precision int8 is for --format onnx, not for {kind}")
        correction = not options.no_bias_correction
        return CalibrationOptions(options.calibrate, options.calibrate_images, options.keep_within, correction)
    for name in ("calibrate", "calibrate_images", "keep_within", "no_bias_correction"):
        if getattr(options, name) not in (None, False):
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} is for --precision int8, not for {options.precision}")
    return None


def _say(line: str) -> None:
    tell(line, file=sys.stderr)


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= MAX_BATCH_SIZE:
        raise UsageError(f"--batch (={text!r}) must be dynamic or a number of at least 1 and at most {MAX_BATCH_SIZE}")
    return int(text)


def _report(written: Written, runtime: str) -> list[str]:
    about = written.description
    image, output = (_shape(about.batch, shape) for shape in (about.preprocessing.shape, about.shape))
    files = ", ".join(f"{file} ({file.stat().st_size / 1e6:.1f} MB)" for file in written.files)
    images = " and ".join(map(str, written.checked))
    lines = [
        f"{files}: {about.model}, {about.precision}" + (f", opset {about.opset}" if about.opset else ""),
        f"image {image} -> {about.output} {output}, float32"
        + ("" if about.classes is None else f"; {_named(about.task)} are in the file"),
        f"checked with {runtime} at batch {images}: {_difference(written)}",
    ]
    if len(written.files) > 1:
        lines.append(f"too large for one ONNX file: {written.files[1]} holds the weights and must stay beside it")
    return [*lines, f"next: normfree predict {written.path} IMAGE_OR_FOLDER ..."]


def _difference(written: Written) -> str:
    if written.description.precision != "int8":
        return f"largest relative difference {written.difference:.1e}"
    return f"relative difference {written.difference:.3f}, allowed are {TOLERANCE['int8']:g}"


def _named(task: str) -> str:
    return "names of the numbers" if task == "regression" else "class names"


def _shape(batch: int | None, shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, (batch or 'N', *shape)))})"
