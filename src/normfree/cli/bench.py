"""``normfree bench``."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..bench import TABLES, Samples, alternate, image_batch, machine, scaling, step_memory, tables, training_step
from ..bench.step import layout
from ..bench.tables import Row
from ..data import Batch
from ..data.config import MOST_PIXELS
from ..errors import RunFailed, UsageError
from ..training import keep_freed_memory, pick_device
from .main import Parser
from .networks import open_network

WHAT = {
    "step": "time and memory of a training step of networks, and of a forward pass",
    "tables": "the papers' tables of training speed: Normalizer-Free networks beside those with BatchNorm",
    "scaling": "time and memory of a step against batch, image size and depth, with a picture",
}
MOST_BATCH, MOST_ROUNDS = 65536, 10000


def run(argv: Sequence[str]) -> int:
    """Measure on this machine."""
    what = argv[0] if argv else None
    if what in WHAT:
        return {"step": _step, "tables": _tables, "scaling": _scaling}[what](argv[1:])
    lines = "\n".join(f"  {name:8} {text}" for name, text in WHAT.items())
    parser = Parser(
        "bench",
        usage="normfree bench WHAT [options]",
        description=f"Measure training on this machine.\n\nWHAT is one of\n{lines}\n\n"
        "normfree bench WHAT --help says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", metavar="WHAT", choices=WHAT, help=argparse.SUPPRESS)
    parser.parse_args(list(argv))
    return 0  # --help has been printed


def _step(argv: Sequence[str]) -> int:
    parser = Parser("bench step", description=f"Measure {WHAT['step']}; all alternate in one run.")
    parser.add_argument("network", nargs="+", help="MODEL, RUN or pkg.module:factory")
    _add_common(parser, batch=8, size=192, rounds=5)
    options = _checked(parser.parse_args(list(argv)))
    device, precision, last = options.device.type, options.precision, options.channels_last
    batch = image_batch(options.batch, options.size, device=device, channels_last=last)
    steps, memory, passes = {}, {}, {}
    for name in dict.fromkeys(options.network):
        model = open_network(name, {}, 0).model.train().to(device, memory_format=layout(last))
        own = _relabelled(batch, _classes(model, batch))
        try:
            memory[name] = step_memory(model, own, precision)
        except ValueError as error:  # BatchNorm of one value
            raise RunFailed(f"{name} cannot train on batch {options.batch} of {options.size} px: {error}") from error
        steps[name] = training_step(model, own, precision=precision, compiled=options.compile)
        passes[name] = _forward(model, batch.images, precision)
    measured = alternate(steps, options.rounds, device=device)
    forward = alternate(passes, options.rounds, device=device, warmup=1)
    print(f"batch {options.batch}, {options.size} px, {precision}, {_form(options)}; {machine(device)}\n")
    print("| network | ms per step | smallest to largest | images per second | forward, ms | kept, MB per image |")
    print("|---|---|---|---|---|---|")
    for name, samples in measured.items():
        kept = memory[name][0] / 1e6 / options.batch
        print(
            f"| {name} | {_ms(samples)} | {options.batch / samples.median:.4g} "
            f"| {1e3 * forward[name].median:.1f} | {kept:.1f} |"
        )
    return 0


@torch.no_grad()
def _classes(model: torch.nn.Module, batch: Batch) -> int:
    classes = model.eval()(batch.images[:1]).shape[-1]
    model.train()
    return classes


def _relabelled(batch: Batch, classes: int) -> Batch:
    """With labels that a network of so few classes has."""
    labels = batch.labels % classes
    return Batch(batch.images, labels, labels)


def _forward(model: torch.nn.Module, images: torch.Tensor, precision: str) -> Callable[[], None]:
    """A pass in evaluation, the network left in training."""

    @torch.no_grad()
    def run() -> None:
        model.eval()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            model(images)
        model.train()

    return run


def _tables(argv: Sequence[str]) -> int:
    titles = "; ".join(f"{number}: {table.title}" for number, table in TABLES.items())
    parser = Parser("bench tables", description=f"Measure {WHAT['tables']}. {titles}.")
    parser.add_argument("number", nargs="*", type=int, help=f"tables; default: {' '.join(map(str, TABLES))}")
    parser.add_argument("--rows", type=int, help="the first so many of each; default: 1 on a CPU, all on a GPU")
    _add_common(parser, batch=16, size=None, rounds=3)
    options = _checked(parser.parse_args(list(argv)))
    for number in options.number:
        if number not in TABLES:
            raise UsageError(f"table {number} is not one of {', '.join(map(str, TABLES))}")
    if options.rows is not None and options.rows < 1:
        raise UsageError(f"--rows (={options.rows}) must be at least 1")
    device = options.device.type
    rows = options.rows or (1 if device == "cpu" else None)
    print(f"batch {options.batch}, {options.precision}, {_form(options)}; {machine(device)}")
    settings = dict(batch_size=options.batch, rounds=options.rounds, rows=rows, size=options.size)
    settings |= dict(precision=options.precision, device=device, channels_last=options.channels_last)
    for number in options.number or TABLES:
        table = TABLES[number]
        print(f"\n{table.title}\n")
        print("| network | px | ms per step | smallest to largest | beside | ms | ratio | the paper's |")
        print("|---|---|---|---|---|---|---|---|")
        for row, ours, theirs in _shown(
            tables.measure(table, **settings, compiled=options.compile, started=_say_row), device
        ):
            paper = ", ".join(f"{value:.2f} ({where})" for where, value in row.paper.items())
            px = options.size or (row.size if row.size == row.peer_size else f"{row.size}, {row.peer_size}")
            print(
                f"| {row.network} | {px} | {_ms(ours)} | {row.peer} | {1e3 * theirs.median:.0f} "
                f"| {ours.median / theirs.median:.2f} | {paper} |",
                flush=True,
            )
    print("\nRatios of a step's time: below 1, the Normalizer-Free network is faster. The papers' at batch 16 or 32.")
    return 0


def _say_row(row: Row) -> None:
    if sys.stderr.isatty():
        print(f"{row.network} and {row.peer} ...", file=sys.stderr)


def _shown(measured, device: str):
    """Rows until memory ends."""
    try:
        yield from measured
    except torch.OutOfMemoryError as error:
        raise RunFailed(f"{device}'s memory is too small for the next row; lower --batch") from error


def _scaling(argv: Sequence[str]) -> int:
    parser = Parser("bench scaling", description=f"Measure {WHAT['scaling']}.")
    parser.add_argument("series", nargs="*", metavar="SERIES", help="batch, size, depth; default: all")
    parser.add_argument("--model", default="nfnet_f0", help="of the first two; default: nfnet_f0")
    parser.add_argument("--out", default="scaling", metavar="FOLDER", help="of scaling.png and scaling.csv")
    _add_common(parser, batch=4, size=192, rounds=3, compile_too=False)
    options = _checked(parser.parse_args(list(argv)))
    names = options.series or ["batch", "size", "depth"]
    for name in names:
        if name not in ("batch", "size", "depth"):
            raise UsageError(f"series {name!r} is not one of batch, size, depth")
    open_network(options.model, {}, 0)  # known?
    folder = Path(options.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {folder} cannot be made: {error.strerror or error}") from error
    device, points = options.device.type, []
    print(f"{options.precision}, {_form(options)}; {machine(device)}\n")
    print("| | network | batch | px | G multiply-adds | ms per step | G per second | kept, MB | most, MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    settings = dict(rounds=options.rounds, precision=options.precision, device=device)
    settings |= dict(channels_last=options.channels_last)
    for name in dict.fromkeys(names):
        grid = scaling.grid(name, options.model, options.batch, options.size)
        for point in _shown(scaling.measure(name, grid, **settings), device):
            points.append(point)
            print(
                f"| {name} | {point.model} | {point.batch} | {point.size} | {point.macs / 1e9:.1f} "
                f"| {1e3 * point.seconds:.0f} | {point.macs / 1e9 / point.seconds:.1f} "
                f"| {point.kept / 1e6:.0f} | {point.most / 1e6:.0f} |",
                flush=True,
            )
            scaling.write(points, folder / "scaling.csv")
    scaling.plot(points).savefig(folder / "scaling.png")
    print()
    for name in dict.fromkeys(names):
        some = [point for point in points if point.series == name]
        line = scaling.fit([point.macs for point in some], [point.seconds for point in some])
        print(
            f"{name}: {1e3 * line.constant:.0f} ms + {1e12 * line.slope:.2f} ms per G multiply-adds, "
            f"no point farther than {line.worst:.0%} from it"
        )
    print(f"written {folder / 'scaling.png'} and scaling.csv")
    return 0


def _add_common(parser: Parser, *, batch: int, size: int | None, rounds: int, compile_too: bool = True) -> None:
    parser.add_argument("--batch", type=int, default=batch, metavar="N", help=f"images per step; default: {batch}")
    text = "the table's" if size is None else size
    parser.add_argument("--size", type=int, default=size, metavar="PX", help=f"side of the images; default: {text}")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"samples of each; default: {rounds}")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="default: float32")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda; default: auto")
    parser.add_argument("--contiguous", action="store_true", help="layout of the maps; default: channels last")
    if compile_too:
        parser.add_argument("--compile", action="store_true", help="forward and backward through torch.compile")


def _checked(options: argparse.Namespace) -> argparse.Namespace:
    for name, most in (("batch", MOST_BATCH), ("size", MOST_PIXELS), ("rounds", MOST_ROUNDS)):
        value = getattr(options, name)
        if value is not None and not 1 <= value <= most:
            raise UsageError(f"--{name} (={value}) must be at least 1 and at most {most}")
    options.device = pick_device(options.device)
    keep_freed_memory()  # as in training
    options.channels_last = not options.contiguous
    options.compile = getattr(options, "compile", False)
    return options


def _form(options: argparse.Namespace) -> str:
    return f"{'channels last' if options.channels_last else 'contiguous'}{', compiled' if options.compile else ''}"


def _ms(samples: Samples) -> str:
    low, high = samples.spread
    return f"{1e3 * samples.median:.0f} | {1e3 * low:.0f} to {1e3 * high:.0f}"
