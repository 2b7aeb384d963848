"""``normfree spp``."""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..data import find_images
from ..data.walk import Walk
from ..errors import UsageError
from ..recipes.safe_yaml import load_yaml
from ..runs.inspected import open_inspected
from ..runs.outputs import check_output, try_to_write
from ..runs.signals import first_record, record_and_diagnose, with_unique_names, write, write_spectra, writing
from ..spp import width_check
from ..spp.plot import GRADIENTS, TITLES, check_columns
from ..training import pick_device
from ..words import tell
from .parser import Parser

FORMATS = ("png", "svg", "pdf")


def run(argv: Sequence[str]) -> int:
    """Record, draw and diagnose the signal of one or more networks."""
    options = _parser().parse_args(list(argv))
    for name, value in dict(batch=options.batch, size=options.size).items():
        if value is not None and value < 1:
            raise UsageError(f"--{name} (={value}) must be at least 1")
    columns = _columns(options)
    if options.widths is not None:
        return _check_widths(options)
    overrides, device = parse_options(options.option), pick_device(options.device, float64=True)
    networks = with_unique_names(
        [open_inspected(text, overrides, options.seed, options.checkpoint) for text in options.network], options.network
    )
    prefix = _prefix(options, networks[0].name)
    first = {text: first_record(text) for text in options.network}
    pairs = zip(networks, options.network, strict=True)
    recorded = [record_and_diagnose(network, options, device, first[text]) for network, text in pairs]
    log = {"auto": None, "log": True, "linear": False}[options.scale]
    tell(*write(recorded, prefix, options.format, columns, log))
    if options.spectra:
        tell(*write_spectra(networks, prefix))
    return 0


def _check_widths(options: argparse.Namespace) -> int:
    """Record each network at several values of one of its options, and print how its signal depends on them."""
    key, _, text = options.widths.partition("=")
    if not key or not re.fullmatch(r"\d+(,\d+)+", text):
        raise UsageError(f"--widths {options.widths} must look like KEY=N,N,.., for example width=16,64,256")
    overrides, widths = parse_options(options.option), [int(width) for width in text.split(",")]
    for name in options.network:
        first = open_inspected(name, overrides | {key: widths[0]}, options.seed)
        channels, size = first.shape[0], options.size or first.shape[-1]
        shape = (options.batch or 4, channels, *(size,) * (len(first.shape) - 1))
        check = width_check(
            lambda width, name=name: open_inspected(name, overrides | {key: width}, torch.initial_seed()).model,
            widths,
            shape,
            blocks=options.blocks,
        )
        lines = [f"  ! {finding}" for finding in check.diagnose()] or ["  no block depends on the width"]
        tell(f"{name}: variances of the branches at {len(widths)} widths", *str(check).splitlines(), *lines)
    return 0


def _parser() -> Parser:
    parser = Parser(
        "spp",
        description="Signal propagation plot: statistics of every residual block, drawn, as a table, and judged.",
        epilog="examples:\n"
        "  normfree spp nfnet_f0\n"
        "  normfree spp nf_resnet50 --option gamma=1.414 --option skip_gain=1\n"
        "  normfree spp bn_resnet50 nf_resnet50 --out compare\n"
        "  normfree spp runs/digits --data photos\n"
        "  normfree spp nf_resnet50 --columns avg_var,avg_mean,pixel_norm,cosine\n"
        "  normfree spp nf_resnet50 --backward\n"
        "  normfree spp torchvision.models:resnet50\n"
        "  normfree spp timm:create_model --option model_name=resnetv2_50\n\n"
        "pkg.module:factory imports that module and calls the function: it runs code, and looks for modules in the\n"
        "current folder first. Name only what you trust, and do not work in a folder of other people's files.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "network",
        metavar="NETWORK",
        nargs="+",
        help="a name from `normfree models`, a run folder, or pkg.module:factory; several are overlaid",
    )
    parser.add_argument(
        "--option",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="argument of a model by name, or of a function",
    )
    _add_inputs(parser)
    parser.add_argument(
        "--rules",
        choices=["auto", "untrained", "trained"],
        default="auto",
        help="by which the signal is judged; auto, the default: runs, checkpoints and pretrained=True are trained",
    )
    parser.add_argument("--blocks", metavar="PATTERN", help="modules to take as blocks, for example 'features.*'")
    parser.add_argument(
        "--running-stats", action="store_true", help="BatchNorm by running statistics, not by the batch"
    )
    parser.add_argument("--backward", action="store_true", help="gradients of the blocks' outputs, too")
    parser.add_argument(
        "--widths",
        metavar="KEY=N,N,..",
        help="instead of all else: does the signal depend on this option of the network? For example width=16,64,256",
    )
    parser.add_argument("--checkpoint", choices=["last", "best"], help="of a run folder; default: last")
    parser.add_argument("--spectra", action="store_true", help="singular values of the weights, too")
    parser.add_argument("--table", action="store_true", help="print the numbers of every block")
    _add_outputs(parser)
    parser.add_argument("--device", default="auto", help="default: cuda where there is one, else cpu")
    return parser


def _add_outputs(parser: Parser) -> None:
    parser.add_argument(
        "--out",
        metavar="PREFIX",
        help="files PREFIX.png and PREFIX.csv, or a folder for them; default: spp-NETWORK in the current folder",
    )
    parser.add_argument("--format", choices=FORMATS, help="of the picture; default: what --out ends in, else png")
    parser.add_argument(
        "--columns",
        metavar="A,B,..",
        help=f"the picture's panels, of {', '.join(TITLES)}; default: the first three, with --backward grad_var",
    )
    parser.add_argument("--scale", choices=["auto", "log", "linear"], default="auto", help="of its axes; default: auto")


def _add_inputs(parser: Parser) -> None:
    parser.add_argument("--size", type=int, metavar="PX", help="side of the inputs; default: the network's own, or 224")
    parser.add_argument(
        "--batch-size", "--batch", dest="batch", type=int, metavar="N", help="number of inputs; default: 4, of a run 32"
    )
    parser.add_argument("--seed", type=int, default=0, help="of fresh weights and of the noise; default: 0")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--data", metavar="FOLDER", help="show images of this folder")
    shown.add_argument(
        "--noise",
        action="store_true",
        help="show unit Gaussian noise; default, but runs are shown their test images",
    )


def _columns(options: argparse.Namespace) -> list[str] | None:
    """The panels that were asked for; None: the usual ones."""
    if options.columns is None:
        return None
    columns = [column.strip() for column in options.columns.split(",")]
    try:
        check_columns(columns)
    except UsageError as error:
        raise UsageError(f"--{error}") from error
    unknown = [column for column in columns if column in GRADIENTS]
    if unknown and not options.backward:
        raise UsageError(f"--columns {','.join(unknown)}: gradients are recorded with --backward only")
    return columns


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """``--option KEY=VALUE`` as arguments."""
    overrides = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise UsageError(f"--option {option} must look like KEY=VALUE, for example alpha=1.0")
        overrides[key] = load_yaml(value, f"--option {option}: the value")
        if isinstance(overrides[key], str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value.strip()):
            overrides[key] = float(value)  # YAML reads 1e-3 as text
    return overrides


def _prefix(options: argparse.Namespace, name: str) -> str:
    """The beginning of the files' names, checked before anything is recorded; ``--out x.svg`` names the picture."""
    default = "spp-" + (re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "network")[:100]
    out = Path(options.out or default)
    if options.out and out.suffix[1:] in FORMATS:
        if options.format not in (None, out.suffix[1:]):
            raise UsageError(f"--out {out} must end in .{options.format} for --format {options.format}")
        options.format, options.out = out.suffix[1:], str(out.with_suffix(""))
    options.format = options.format or FORMATS[0]
    prefix = str(Path(options.out) / default) if options.out and os.path.isdir(options.out) else options.out or default
    folder = Path(prefix).parent
    if prefix.endswith("/") or Path(prefix).name in ("", ".."):
        raise UsageError(f"--out {prefix} must be the beginning of file names, or a folder that is there")
    if not folder.is_dir():
        raise UsageError(f"--out {prefix}: folder {folder} does not exist")
    for suffix in (f".{options.format}", ".csv", *(["-spectra.csv"] if options.spectra else [])):
        path, inputs = Path(prefix + suffix), list(options.network)
        if options.data and path.is_file():
            inputs += find_images([options.data], Walk())
        check_output("--out", path, (path.suffix,), inputs)
        with writing(path):
            try_to_write(path)
    return prefix
