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
from ..export.write import check_place
from ..limits import MAX_BATCH_SIZE, MAX_INPUT_SIDE
from ..runs.deployable import open_deployable
from ..runs.exported import ARCHIVE, ONNX
from ..runs.outputs import check_output
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
    network = open_deployable(options.network, options.checkpoint, random=options.random)
    preprocessing = network.preprocessing
    if options.size is not None:
        depth = None if preprocessing.depth is None else options.size
        preprocessing = replace(preprocessing, size=options.size, width=None, depth=depth)
    settings |= dict(preprocessing=preprocessing, classes=network.classes, name=network.name)
    settings |= dict(task=network.task.kind, targets=network.targets)
    tell(f"exporting {network.name} ({network.origin}) ...", file=sys.stderr)
    written = (to_onnx if kind == "onnx" else to_archive)(network.model, path, **settings)
    tell(*_report(written, "onnxruntime" if kind == "onnx" else "torch.export.load"))
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
        f"checked with {runtime} at batch {images}: largest relative difference {written.difference:.1e}",
    ]
    if len(written.files) > 1:
        lines.append(f"too large for one ONNX file: {written.files[1]} holds the weights and must stay beside it")
    return [*lines, f"next: normfree predict {written.path} IMAGE_OR_FOLDER ..."]


def _named(task: str) -> str:
    return "names of the numbers" if task == "regression" else "class names"


def _shape(batch: int | None, shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, (batch or 'N', *shape)))})"
