"""``normfree spp``."""

import argparse
import csv
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ..data import EvalTransform, decode_image, find_images
from ..errors import UsageError
from ..models.registry import IMAGENET_MEAN, IMAGENET_STD
from ..spp import SPP, Spectrum, plot, record, spectra
from ..training import pick_device
from .main import Parser
from .networks import Named, open_network


def run(argv: Sequence[str]) -> int:
    """Record, draw and judge the signal of one or more networks."""
    options = _parser().parse_args(list(argv))
    overrides = _overrides(options.option)
    networks = [open_network(text, overrides, options.seed, options.checkpoint) for text in options.network]
    device, recorded = pick_device(options.device), []
    prefix = options.out or "spp-" + re.sub(r"[^A-Za-z0-9._-]+", "-", networks[0].name).strip("-")
    _check_writable(prefix)
    for network in networks:
        inputs = _inputs(network, options).to(device)
        spp = record(
            network.model.to(device),
            inputs,
            blocks=options.blocks,
            batch_stats=not options.running_stats,
            name=network.name,
        )
        recorded.append(spp)
        print(_report(spp, table=options.table))
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
        try:
            overrides[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"--option {option}: the value is not YAML") from error
    return overrides


def _inputs(network: Named, options: argparse.Namespace) -> Tensor:
    """Noise, or images of a folder as the network would be evaluated on them."""
    channels, size = network.shape[0], options.size or network.shape[-1]
    if options.batch < 1 or size < 1:
        raise UsageError(f"--batch (={options.batch}) and --size (={size}) must be at least 1")
    if options.data is None:
        noise = torch.Generator().manual_seed(options.seed)
        return torch.randn((options.batch, channels, size, size), generator=noise)
    paths = find_images([options.data])[: options.batch]
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,) * channels, (0.5,) * channels)
    transform = EvalTransform(size, 32, mean, std)
    return torch.stack([transform(decode_image(path, channels)) for path in paths])


def _report(spp: SPP, *, table: bool) -> str:
    lines = [str(spp) if table else str(spp).splitlines()[0]]
    first, last = spp.rows[0], spp.rows[-1]
    lines.append(f"  variance {first.avg_var:.3g} at {first.block}, {last.avg_var:.3g} at {last.block}")
    findings = spp.diagnose()
    lines += [f"  ! {finding}" for finding in findings] or ["  no fault found"]
    branches = [row for row in spp.rows if row.added_var is not None]
    if branches and not any(row.added_var for row in branches):
        lines.append("  every branch is multiplied by 0, as some initializations mean it; look again after some steps")
    return "\n".join(lines)


def _check_writable(prefix: str) -> None:
    folder = Path(prefix).parent
    if not folder.is_dir():
        raise UsageError(f"--out {prefix}: folder {folder} does not exist")


def _write(recorded: list[SPP], prefix: str, suffix: str, log: bool | None) -> str:
    picture, table = Path(f"{prefix}.{suffix}"), Path(f"{prefix}.csv")
    plot(*recorded, log=log).savefig(picture)
    lines = []
    for spp in recorded:
        header, *rows = spp.to_csv().splitlines()
        lines += [f"network,{header}"] if not lines else []
        lines += [f'"{spp.name}",{row}' for row in rows]
    table.write_text("\n".join(lines) + "\n")
    return f"picture {picture}\ntable   {table}"


def _write_spectra(networks: list[Named], prefix: str, shown: int = 5) -> str:
    lines, path = [], Path(f"{prefix}-spectra.csv")
    with path.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["network", *(field.name for field in dataclasses.fields(Spectrum))])
        for network in networks:
            found = spectra(network.model)
            table.writerows([network.name, *dataclasses.astuple(s)[:-1], "x".join(map(str, s.shape))] for s in found)
            lines.append(f"{network.name}: worst conditioned of {len(found)} layers")
            worst = sorted(found, key=lambda s: -s.condition)[:shown]
            lines += [
                f"  {s.layer}: singular values {s.largest:.3g} to {s.smallest:.3g}, condition {s.condition:.3g}"
                for s in worst
            ]
    return "\n".join([*lines, f"spectra {path}"])
