"""``normfree bench``."""

import argparse
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..bench import TABLES, Samples, alternate, image_batch, machine, scaling, step_memory, tables, training_step
from ..bench.scaling import Point
from ..bench.step import Measuring, layout
from ..bench.tables import Row
from ..bench.timing import Progress
from ..data import Batch
from ..errors import UsageError
from ..limits import MOST_PIXELS
from ..models.registry import lookup
from ..training import keep_freed_memory, pick_device
from ..words import tell
from .main import Parser
from .networks import Named, open_network

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
    parser.add_argument("network", nargs="+", help="MODEL, RUN or pkg.module:factory, of a classifier")
    _add_common(parser, batch=8, size=192, rounds=5)
    options = _checked(parser.parse_args(list(argv)))
    device, precision = options.device.type, options.precision
    steps, memory, passes = {}, {}, {}
    for name in dict.fromkeys(options.network):
        _say(name)
        network, measuring = open_network(name, {}, 0), Measuring(name, options.batch, options.size)
        with measuring:
            model, batch = _prepared(name, network, options)
            memory[name] = step_memory(model, batch, precision)
            steps[name] = measuring(training_step(model, batch, precision=precision, compiled=options.compile))
            passes[name] = measuring(_forward(model, batch.images, precision))
    measured = alternate(steps, options.rounds, device=device, progress=_rounds("training steps"))
    forward = alternate(passes, options.rounds, device=device, warmup=1, progress=_rounds("forward passes"))
    print(f"batch {options.batch}, {options.size} px, {precision}, {_form(options)}; {machine(device)}\n")
    print("| network | ms per step | smallest to largest | images per second | forward, ms | kept, MB per image |")
    print("|---|---|---|---|---|---|")
    for name, samples in measured.items():
        kept = memory[name][0] / 1e6 / options.batch
        tell(
            f"| {name} | {_ms(samples)} | {options.batch / samples.median:.4g} "
            f"| {1e3 * forward[name].median:.1f} | {kept:.1f} |"
        )
    return 0


def _prepared(name: str, network: Named, options: argparse.Namespace) -> tuple[nn.Module, Batch]:
    """A network in training mode, and images and labels such as it takes."""
    last = options.channels_last
    settings = dict(channels=network.shape[0], device=options.device.type, channels_last=last)
    model = network.model.to(options.device, memory_format=layout(last))
    classes = _classes(name, model.eval(), image_batch(1, options.size, **settings).images)
    return model.train(), image_batch(options.batch, options.size, classes=classes, **settings)


@torch.no_grad()
def _classes(name: str, model: nn.Module, images: Tensor) -> int:
    """How many a network tells apart: the loss is a classifier's."""
    answer = model(images)
    if isinstance(answer, Tensor) and answer.ndim == 2 and len(answer) == len(images) and answer.shape[1] > 0:
        return answer.shape[1]
    told = f"a tensor of shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
    raise UsageError(
        f"{name} answers images of shape {tuple(images.shape)} with {told}; bench step measures classifiers, "
        "which answer with a tensor of shape (N, classes)"
    )


def _forward(model: nn.Module, images: Tensor, precision: str) -> Callable[[], None]:
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
        for row, ours, theirs in tables.measure(
            table, **settings, compiled=options.compile, started=_say_row, progress=_rounds()
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


def _say(what: str) -> None:
    """What is at work, where somebody watches."""
    if sys.stderr.isatty():
        tell(f"{what} ...", file=sys.stderr)


def _say_row(row: Row) -> None:
    _say(f"{row.network} and {row.peer}")


def _say_point(name: str, batch: int, size: int) -> None:
    _say(f"{name}, batch {batch}, {size} px")


def _rounds(what: str = "rounds") -> Progress:
    """A bar on standard error, where that is a terminal."""
    return functools.partial(tqdm, desc=what, unit="round", delay=2, leave=False, disable=None)


def _scaling(argv: Sequence[str]) -> int:
    parser = Parser("bench scaling", description=f"Measure {WHAT['scaling']}.")
    parser.add_argument("series", nargs="*", metavar="SERIES", help="batch, size, depth; default: all")
    parser.add_argument(
        "--model", default="nfnet_f0", help="a name from `normfree models`, of the first two; default: nfnet_f0"
    )
    parser.add_argument("--out", default="scaling", metavar="FOLDER", help="of scaling.png and scaling.csv")
    _add_common(parser, batch=4, size=192, rounds=3, compile_too=False)
    options = _checked(parser.parse_args(list(argv)))
    names = options.series or ["batch", "size", "depth"]
    for name in names:
        if name not in ("batch", "size", "depth"):
            raise UsageError(f"series {name!r} is not one of batch, size, depth")
    try:
        lookup(options.model)
    except UsageError as error:
        raise UsageError(f"--model: {error} (runs and functions are for bench step)") from error
    folder = Path(options.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {folder} cannot be made: {error.strerror or error}") from error
    print(f"{options.precision}, {_form(options)}; {machine(options.device.type)}\n")
    points: list[Point] = []
    with _kept(points, folder):
        _measure_points(points, list(dict.fromkeys(names)), folder / "scaling.csv", options)
    print()
    for name in dict.fromkeys(names):
        some = [point for point in points if point.series == name]
        line = scaling.fit([point.macs for point in some], [point.seconds for point in some])
        print(
            f"{name}: {1e3 * line.constant:.0f} ms + {1e12 * line.slope:.2f} ms per G multiply-adds, "
            f"no point farther than {line.worst:.0%} from it"
        )
    tell(f"written {folder / 'scaling.png'} and scaling.csv")
    return 0


@contextmanager
def _kept(points: list[Point], folder: Path) -> Iterator[None]:
    """Draw what is among the points at the end, and where that comes early, say where it is."""
    whole = False
    try:
        yield
        whole = True
    finally:  # it takes long: nothing is lost when it is interrupted, or comes to a batch too large
        if points:
            scaling.write(points, folder / "scaling.csv")
            scaling.plot(points).savefig(folder / "scaling.png")
            if not whole:
                where = f"{folder / 'scaling.png'} and scaling.csv"
                tell(f"normfree: stopped; what was measured is in {where}", file=sys.stderr)


def _measure_points(points: list[Point], series: Sequence[str], path: Path, options: argparse.Namespace) -> None:
    """Add the points of each series, and print and write each."""
    print("| | network | batch | px | G multiply-adds | ms per step | G per second | kept, MB | most, MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    settings = dict(rounds=options.rounds, precision=options.precision, device=options.device.type)
    settings |= dict(channels_last=options.channels_last, started=_say_point, progress=_rounds())
    for name in series:
        grid = scaling.grid(name, options.model, options.batch, options.size)
        for point in scaling.measure(name, grid, **settings):
            points.append(point)
            scaling.write(points, path)
            print(
                f"| {name} | {point.model} | {point.batch} | {point.size} | {point.macs / 1e9:.1f} "
                f"| {1e3 * point.seconds:.0f} | {point.macs / 1e9 / point.seconds:.1f} "
                f"| {point.kept / 1e6:.0f} | {point.most / 1e6:.0f} |",
                flush=True,
            )


def _add_common(parser: Parser, *, batch: int, size: int | None, rounds: int, compile_too: bool = True) -> None:
    parser.add_argument(
        "--batch-size",
        "--batch",
        dest="batch",
        type=int,
        default=batch,
        metavar="N",
        help=f"images per step; default: {batch}",
    )
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
    options.device = pick_device(options.device, float64=True)
    keep_freed_memory()  # as in training
    options.channels_last = not options.contiguous
    options.compile = getattr(options, "compile", False)
    return options


def _form(options: argparse.Namespace) -> str:
    return f"{'channels last' if options.channels_last else 'contiguous'}{', compiled' if options.compile else ''}"


def _ms(samples: Samples) -> str:
    low, high = samples.spread
    return f"{1e3 * samples.median:.0f} | {1e3 * low:.0f} to {1e3 * high:.0f}"
