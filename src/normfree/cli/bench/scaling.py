"""``normfree bench scaling``."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ...bench import machine, scaling
from ...bench.scaling import Point
from ...errors import UsageError
from ...models.registry import lookup
from ...words import tell
from ..parser import Parser
from .options import WHAT, add_common, checked, form, rounds_bar, say


def run(argv: Sequence[str]) -> int:
    """Time and memory of a step against batch, image size and depth."""
    parser = Parser("bench scaling", description=f"Measure {WHAT['scaling']}.")
    parser.add_argument("series", nargs="*", metavar="SERIES", help="batch, size, depth; default: all")
    parser.add_argument(
        "--model", default="nfnet_f0", help="a name from `normfree models`, of the first two; default: nfnet_f0"
    )
    parser.add_argument("--out", default="scaling", metavar="FOLDER", help="of scaling.png and scaling.csv")
    add_common(parser, batch=4, size=192, rounds=3, compile_too=False)
    options = checked(parser.parse_args(list(argv)))
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
    print(f"{options.precision}, {form(options)}; {machine(options.device.type)}\n")
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
    settings |= dict(channels_last=options.channels_last, started=_say_point, progress=rounds_bar())
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


def _say_point(name: str, batch: int, size: int) -> None:
    say(f"{name}, batch {batch}, {size} px")
