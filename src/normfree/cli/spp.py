"""``normfree spp``."""

import argparse
import csv
import dataclasses
import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import EvalTransform, decode_image
from ..data.decode import UnreadableImage
from ..errors import UsageError
from ..recipes.recipe import load_yaml
from ..spp import SPP, Spectrum, plot, record, spectra
from ..training import pick_device
from .images import given_images
from .main import Parser
from .networks import Named, open_network


def run(argv: Sequence[str]) -> int:
    """Record, draw and judge the signal of one or more networks."""
    options = _parser().parse_args(list(argv))
    for name, value in dict(batch=options.batch, size=options.size).items():
        if value is not None and value < 1:
            raise UsageError(f"--{name} (={value}) must be at least 1")
    overrides, device = _overrides(options.option), pick_device(options.device)
    networks = _told_apart(
        [open_network(text, overrides, options.seed, options.checkpoint) for text in options.network], options.network
    )
    prefix = _prefix(options, networks[0].name)
    recorded = [_record(network, options, device) for network in networks]
    print(_write(recorded, prefix, options.format, log={"auto": None, "log": True, "linear": False}[options.scale]))
    if options.spectra:
        print(_write_spectra(networks, prefix))
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
        "  normfree spp torchvision.models:resnet50 \"timm:create_model('resnetv2_50')\"",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "network",
        metavar="NETWORK",
        nargs="+",
        help="a name from `normfree models`, a run folder, or pkg.module:factory; several are overlaid",
    )
    parser.add_argument(
        "--option", metavar="KEY=VALUE", action="append", default=[], help="argument of a model by name"
    )
    parser.add_argument("--size", type=int, metavar="PX", help="side of the inputs; default: the network's own, or 224")
    parser.add_argument("--batch", type=int, default=4, metavar="N", help="number of inputs; default: 4")
    parser.add_argument("--seed", type=int, default=0, help="of fresh weights and of the noise; default: 0")
    parser.add_argument("--data", metavar="FOLDER", help="show images of a folder instead of unit Gaussian noise")
    parser.add_argument("--blocks", metavar="PATTERN", help="modules to take as blocks, for example 'features.*'")
    parser.add_argument(
        "--running-stats", action="store_true", help="BatchNorm by running statistics, not by the batch"
    )
    parser.add_argument("--checkpoint", choices=["last", "best"], help="of a run folder; default: last")
    parser.add_argument("--spectra", action="store_true", help="singular values of the weights, too")
    parser.add_argument("--table", action="store_true", help="print the numbers of every block")
    parser.add_argument("--out", metavar="PREFIX", help="files PREFIX.png and PREFIX.csv; default: spp-NETWORK")
    parser.add_argument("--format", choices=["png", "svg", "pdf"], default="png", help="of the picture; default: png")
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


def _record(network: Named, options: argparse.Namespace, device: torch.device) -> SPP:
    """Measure a network and report on it."""
    inputs = _inputs(network, options)
    how = dict(blocks=options.blocks, batch_stats=not options.running_stats, name=network.name)
    try:
        spp = record(network.model.to(device), inputs.to(device), **how)
    except UsageError:
        raise
    except Exception as error:  # most often a model that wants another size; it may be the user's code
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"{network.name} fails on inputs of shape {tuple(inputs.shape)}: {reason}") from error
    print(_report(spp, table=options.table))
    return spp


def _inputs(network: Named, options: argparse.Namespace) -> Tensor:
    """Noise, or images of a folder as the network would be evaluated on them."""
    channels, size = network.shape[0], options.size or network.shape[-1]
    if options.data is None:
        shape = (options.batch, channels, size, size)
        try:
            return torch.randn(shape, generator=torch.Generator().manual_seed(options.seed))
        except (RuntimeError, OverflowError, TypeError, MemoryError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"inputs of shape {shape} cannot be made: {reason}") from error
    if channels not in (1, 3):
        raise UsageError(f"--data: images have 1 or 3 channels, not the {channels} of {network.name}")
    paths = given_images([options.data])[: options.batch]
    transform = EvalTransform(size, network.resize_margin, network.mean, network.std, network.test_crop)
    try:
        return torch.stack([transform(decode_image(path, channels)) for path in paths])
    except UnreadableImage as error:
        raise UsageError(f"--data: {error}") from error


def _report(spp: SPP, *, table: bool) -> str:
    lines = [str(spp) if table else str(spp).splitlines()[0]]
    first, last = spp.rows[0], spp.rows[-1]
    lines.append(f"  variance {first.avg_var:.3g} at {first.block}, {last.avg_var:.3g} at {last.block}")
    findings = spp.diagnose()
    lines += [f"  ! {finding}" for finding in findings] or ["  no fault found"]
    branches = [row for row in spp.rows if row.added_var is not None]
    if branches and not any(row.added_var for row in branches):
        lines.append("  every branch adds nothing yet, as some initializations mean it; look again after some steps")
    return "\n".join(lines)


def _prefix(options: argparse.Namespace, name: str) -> str:
    """What the files' names begin with, checked before anything is measured."""
    if options.out and Path(options.out).suffix == f".{options.format}":  # a file name for a prefix
        options.out = str(Path(options.out).with_suffix(""))
    prefix = options.out or "spp-" + (re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "network")[:100]
    folder = Path(prefix).parent
    if prefix.endswith("/") or Path(prefix).name in ("", ".."):
        raise UsageError(f"--out {prefix} must be the beginning of file names, for example {Path(prefix) / 'spp'}")
    if not folder.is_dir():
        raise UsageError(f"--out {prefix}: folder {folder} does not exist")
    for suffix in (f".{options.format}", ".csv", *(["-spectra.csv"] if options.spectra else [])):
        with _writing(path := Path(prefix + suffix)):
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


def _write(recorded: list[SPP], prefix: str, suffix: str, log: bool | None) -> str:
    picture, path = Path(f"{prefix}.{suffix}"), Path(f"{prefix}.csv")
    with _writing(picture), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # names in any script
        plot(*recorded, log=log).savefig(picture)
    with _writing(path), path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        for number, spp in enumerate(recorded):
            header, *rows = csv.reader(io.StringIO(spp.to_csv()))
            table.writerows([["network", *header]] if number == 0 else [])
            table.writerows([spp.name, *row] for row in rows)
    return f"picture {picture}\ntable   {path}"


def _write_spectra(networks: list[Named], prefix: str, shown: int = 5) -> str:
    lines, path = [], Path(f"{prefix}-spectra.csv")
    with _writing(path), path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["network", *(field.name for field in dataclasses.fields(Spectrum))])
        for network in networks:
            found = spectra(network.model)
            table.writerows([network.name, *dataclasses.astuple(s)[:-1], "x".join(map(str, s.shape))] for s in found)
            lines.append(f"{network.name}: worst conditioned of {len(found)} layers")
            worst = sorted(found, key=lambda s: -math.inf if math.isnan(s.condition) else -s.condition)[:shown]
            lines += [
                f"  {s.layer}: singular values {s.largest:.3g} to {s.smallest:.3g}, condition {s.condition:.3g}"
                for s in worst
            ]
    return "\n".join([*lines, f"spectra {path}"])
