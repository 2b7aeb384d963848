"""``normfree spp``."""

import argparse
import csv
import dataclasses
import io
import math
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..data import EvalTransform, Split, decode_image, find_images
from ..data.decode import UnreadableImage
from ..data.walk import Walk
from ..errors import UsageError
from ..recipes import open_images
from ..recipes.plain import load_yaml
from ..runs.prepare import PROBE
from ..spp import SPP, Frame, Spectrum, plot, read_first, record, spectra
from ..training import pick_device
from ..training.run import FILM
from ..words import counted, tell
from .images import given_images
from .main import Parser
from .networks import Named, open_network
from .outputs import check_output
from .shown import Shown, shown_to
from .trained import Trained

FORMATS = ("png", "svg", "pdf")
# arguments of `record`, as its messages have them, and the options that they are here
FLAGS = {
    "blocks=": "--blocks ",
    "blocks (=": "--blocks (=",
    "batch_stats=False": "--running-stats",
    "larger inputs or more of them": "larger inputs (--size) or more of them (--batch-size)",
    "larger inputs, or more of them": "larger inputs (--size), or more of them (--batch-size)",
}


def run(argv: Sequence[str]) -> int:
    """Record, draw and judge the signal of one or more networks."""
    options = _parser().parse_args(list(argv))
    for name, value in dict(batch=options.batch, size=options.size).items():
        if value is not None and value < 1:
            raise UsageError(f"--{name} (={value}) must be at least 1")
    overrides, device = _overrides(options.option), pick_device(options.device, float64=True)
    networks = _told_apart(
        [open_network(text, overrides, options.seed, options.checkpoint) for text in options.network], options.network
    )
    prefix = _prefix(options, networks[0].name)
    first = {text: _first_record(text) for text in options.network}
    recorded = [
        _record(network, options, device, first[text]) for network, text in zip(networks, options.network, strict=True)
    ]
    tell(*_write(recorded, prefix, options.format, log={"auto": None, "log": True, "linear": False}[options.scale]))
    if options.spectra:
        tell(*_write_spectra(networks, prefix))
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
    parser.add_argument("--checkpoint", choices=["last", "best"], help="of a run folder; default: last")
    parser.add_argument("--spectra", action="store_true", help="singular values of the weights, too")
    parser.add_argument("--table", action="store_true", help="print the numbers of every block")
    parser.add_argument(
        "--out",
        metavar="PREFIX",
        help="files PREFIX.png and PREFIX.csv, or a folder for them; default: spp-NETWORK in the current folder",
    )
    parser.add_argument("--format", choices=FORMATS, help="of the picture; default: what --out ends in, else png")
    parser.add_argument("--scale", choices=["auto", "log", "linear"], default="auto", help="of its axes; default: auto")
    parser.add_argument("--device", default="auto", help="default: cuda where there is one, else cpu")
    return parser


def _overrides(options: Sequence[str]) -> dict[str, Any]:
    overrides = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise UsageError(f"--option {option} must look like KEY=VALUE, for example alpha=1.0")
        overrides[key] = load_yaml(value, f"--option {option}: the value")
        if isinstance(overrides[key], str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value.strip()):
            overrides[key] = float(value)  # YAML takes 1e-3 for text
    return overrides


def _told_apart(networks: list[Named], texts: Sequence[str]) -> list[Named]:
    """Networks of one name are called as they were given, and numbered where that is the same as well."""
    names = [network.name for network in networks]
    names = [text if names.count(name) > 1 else name for name, text in zip(names, texts, strict=True)]
    numbered = [
        f"{name} #{names[:i].count(name) + 1}" if names.count(name) > 1 else name for i, name in enumerate(names)
    ]
    return [dataclasses.replace(network, name=name) for network, name in zip(networks, numbered, strict=True)]


def _record(network: Named, options: argparse.Namespace, device: torch.device, first: Frame | None) -> SPP:
    """Measure a network and report on it."""
    shown = _inputs(network, options)
    how = dict(blocks=options.blocks, batch_stats=not options.running_stats, name=network.name)
    try:
        spp = record(network.model.to(device), shown.inputs.to(device), **how)
    except UsageError as error:
        raise UsageError(_as_flags(str(error))) from error
    except Exception as error:  # most often a model that wants another size; it may be the user's code
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"{network.name} fails on inputs of shape {tuple(shown.inputs.shape)}: {reason}") from error
    trained = options.rules == "trained" or (options.rules == "auto" and network.pretrained)
    tell(*_numbers(spp, shown, options.table), *_judged(spp, network, trained, shown, first))
    return spp


def _as_flags(message: str) -> str:
    """A message of :func:`normfree.spp.record` with the names of this command's options."""
    for argument, flag in FLAGS.items():
        message = message.replace(argument, flag)
    return message


def _inputs(network: Named, options: argparse.Namespace) -> Shown:
    """Noise, a run's test images, or images of a folder as the network would be evaluated on them."""
    channels, size = network.shape[0], options.size or network.shape[-1]
    if network.run is not None and options.size is None and options.data is None and not options.noise:
        return shown_to(network.run, _test_images(network.run), options.batch or PROBE)
    count = options.batch or 4
    if options.data is None:
        shape = (count, channels, size, size)
        try:
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(options.seed))
        except (RuntimeError, OverflowError, TypeError, MemoryError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"inputs of shape {shape} cannot be made: {reason}") from error
        return Shown(noise, "unit Gaussian noise", False)
    paths = given_images([options.data])[:count]
    transform = EvalTransform(size, network.resize_margin, network.mean, network.std, network.test_crop)
    try:
        images = torch.stack(
            [transform(decode_image(path, channels, value_range=network.value_range)) for path in paths]
        )
    except UnreadableImage as error:
        raise UsageError(f"--data: {error}") from error
    return Shown(images, f"{counted(len(images), 'image')} of {options.data}", False)


def _test_images(run: Trained) -> Split | None:
    """Of a run; None where its data are not there any more."""
    try:
        return open_images(run.recipe).test
    except (UsageError, OSError):
        return None


def _first_record(text: str) -> Frame | None:
    """Of a run folder that has a film."""
    return read_first(Path(text) / FILM) if Path(text).is_dir() else None


def _numbers(spp: SPP, shown: Shown, table: bool) -> list[str]:
    first, last = spp.rows[0], spp.rows[-1]
    return [
        *(str(spp).splitlines() if table else str(spp).splitlines()[:1]),
        f"  variance {first.avg_var:.3g} at {first.block}, {last.avg_var:.3g} at {last.block}, shown {shown.what}",
    ]


def _judged(spp: SPP, network: Named, trained: bool, shown: Shown, first: Frame | None) -> list[str]:
    """What is found, and by which rules."""
    if not trained:
        findings = spp.diagnose()
        rules = "rules for untrained networks; --rules trained for a trained one"
    elif first is not None and shown.own and first.spp.blocks == spp.blocks:
        findings = spp.diagnose(trained=True, first=first, spectra=spectra(network.model))
        rules = f"rules for trained networks, and {FILM} at step {first.step}"
    else:
        findings = spp.diagnose(trained=True, spectra=spectra(network.model))
        rules = "rules for trained networks; nothing to compare with"
        if network.run is not None and first is None:
            rules += f": {FILM} comes from train --spp-every N"
        elif first is not None:
            rules += f": {FILM} is of other inputs or blocks"
    lines = [f"  ! {_as_flags(str(finding))}" for finding in findings] or ["  no fault found"]
    branches = [row for row in spp.rows if row.added_var is not None]
    if branches and not any(row.added_var for row in branches):
        lines.append("  every branch adds nothing yet, as some initializations mean it; look again after some steps")
    return [*lines, f"  judged by the {rules}"]


def _prefix(options: argparse.Namespace, name: str) -> str:
    """What the files' names begin with, checked before anything is measured; ``--out x.svg`` is the picture's name."""
    usual = "spp-" + (re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "network")[:100]
    out = Path(options.out or usual)
    if options.out and out.suffix[1:] in FORMATS:
        if options.format not in (None, out.suffix[1:]):
            raise UsageError(f"--out {out} must end in .{options.format} for --format {options.format}")
        options.format, options.out = out.suffix[1:], str(out.with_suffix(""))
    options.format = options.format or FORMATS[0]
    prefix = str(Path(options.out) / usual) if options.out and os.path.isdir(options.out) else options.out or usual
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
        with _writing(path):
            existed = path.exists()
            path.open("ab").close()
            if not existed:
                path.unlink()
    return prefix


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"--out: cannot write {path}: {error.strerror or error}") from error


def _write(recorded: list[SPP], prefix: str, suffix: str, log: bool | None) -> list[str]:
    picture, path = Path(f"{prefix}.{suffix}"), Path(f"{prefix}.csv")
    with _writing(picture), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # names in any script
        plot(*recorded, log=log).savefig(picture)
    with _writing(path), path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file, lineterminator="\n")
        for number, spp in enumerate(recorded):
            header, *rows = csv.reader(io.StringIO(spp.to_csv()))
            table.writerows([["network", *header]] if number == 0 else [])
            table.writerows([spp.name, *row] for row in rows)
    return [f"picture {picture}", f"table   {path}"]


def _write_spectra(networks: list[Named], prefix: str, shown: int = 5) -> list[str]:
    lines, path = [], Path(f"{prefix}-spectra.csv")
    with _writing(path), path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["network", *(field.name for field in dataclasses.fields(Spectrum))])
        for network in networks:
            found = spectra(network.model)
            table.writerows([network.name, *dataclasses.astuple(s)[:-1], "x".join(map(str, s.shape))] for s in found)
            lines.append(f"{network.name}: worst conditioned of {counted(len(found), 'layer')}")
            worst = sorted(found, key=lambda s: -math.inf if math.isnan(s.condition) else -s.condition)[:shown]
            lines += [
                f"  {s.layer}: singular values {s.largest:.3g} to {s.smallest:.3g}, condition {s.condition:.3g}"
                for s in worst
            ]
    return [*lines, f"spectra {path}"]
