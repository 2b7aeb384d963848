"""``normfree bench tables``."""

import argparse
from collections.abc import Sequence

from ...bench import TABLES, Samples, machine, tables
from ...bench.published import Published, Unit
from ...bench.tables import Measured, Row
from ...errors import UsageError
from ...words import counted
from ..parser import Parser
from .options import WHAT, add_machine, checked, form, rounds_bar, say

ON_CPU, ON_GPU = 3, 100  # steps
NO_MEMORY = "out of memory"


def run(argv: Sequence[str]) -> int:
    """The papers' tables of speed, on this machine."""
    options = _options(argv)
    device = options.device.type
    options.batch = list(dict.fromkeys(options.batch))
    print(f"batch {', '.join(map(str, options.batch))}, {options.precision}, {form(options)}; {machine(device)}")
    print(f"median of {counted(options.steps, 'step')} of each network, in turn; the images are on the device")
    settings = dict(steps=options.steps, size=options.size, precision=options.precision, device=device)
    settings |= dict(channels_last=options.channels_last, compiled=options.compile, progress=rounds_bar("steps"))
    for number in options.number or TABLES:
        table = TABLES[number]
        print(f"\n{table.title}\n")
        unit = "ms per step" if table.unit == "ms" else table.unit
        print(f"| network | batch | px | {unit} | smallest to largest | beside | {table.unit} | ratio | published | |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for row in table.rows[: options.rows]:
            for batch in options.batch:
                say(f"{row.ours} and {row.theirs}, batch {batch}")
                sides = tables.measure(row, batch_size=batch, clipping=table.clipping, **settings)
                print(_line(row, batch, options.size, sides, table.unit), flush=True)
    print(
        "\nRatios are of a step's time: below 1, the network is faster than what stands beside it. Published: TPUv3 in "
        "bfloat16 on 32 devices, V100 in float16 (NFNets), at the batch in parentheses."
    )
    return 0


def _options(argv: Sequence[str]) -> argparse.Namespace:
    titles = "; ".join(f"{number}: {table.title}" for number, table in TABLES.items())
    parser = Parser("bench tables", description=f"Measure {WHAT['tables']}. {titles}.")
    parser.add_argument("number", nargs="*", type=int, help=f"tables; default: {' '.join(map(str, TABLES))}")
    parser.add_argument("--rows", type=int, help="the first so many of each; default: 1 on a CPU, all on a GPU")
    parser.add_argument(
        "--batch-size",
        "--batch",
        dest="batch",
        nargs="+",
        type=int,
        default=[16],
        metavar="N",
        help="images per step, one number or several; the papers: 32 in tables 3 and 6, 16 32 64 in 4; default: 16",
    )
    parser.add_argument(
        "--steps",
        "--rounds",
        dest="steps",
        type=int,
        metavar="N",
        help=f"steps, whose median counts; NFNets: 5000; default: {ON_CPU} on a CPU, {ON_GPU} on a GPU",
    )
    add_machine(parser, size=None, precisions=("float32", "bfloat16", "float16"))
    options = checked(parser.parse_args(list(argv)))
    for number in options.number:
        if number not in TABLES:
            raise UsageError(f"table {number} is not one of {', '.join(map(str, TABLES))}")
    if options.rows is not None and options.rows < 1:
        raise UsageError(f"--rows (={options.rows}) must be at least 1")
    on_cpu = options.device.type == "cpu"
    options.rows = options.rows or (1 if on_cpu else None)
    options.steps = options.steps or (ON_CPU if on_cpu else ON_GPU)
    return options


def _line(row: Row, batch: int, size: int | None, sides: tuple[Measured, Measured], unit: Unit) -> str:
    """A row of the table that is printed."""
    ours, theirs = sides
    px = size or (row.ours.size if row.ours.size == row.theirs.size else f"{row.ours.size}, {row.theirs.size}")
    ratio = NO_MEMORY
    if ours.samples is not None and theirs.samples is not None:
        ratio = f"{ours.samples.median / theirs.samples.median:.2f}"
    cells = [_name(row.ours, ours), batch, px, _median(ours.samples, unit), _spread(ours.samples, unit)]
    cells += [_name(row.theirs, theirs), _median(theirs.samples, unit), ratio, *_published(row.published, batch, unit)]
    return f"| {' | '.join(map(str, cells))} |"


def _name(side: tables.Side, measured: Measured) -> str:
    """With the micro-batch where gradients were accumulated."""
    return f"{side}" if measured.micro_batch is None else f"{side} (micro-batch {measured.micro_batch})"


def _figure(seconds: float, unit: Unit) -> str:
    return f"{1e3 * seconds:.0f}" if unit == "ms" else f"{1 / seconds:.4g}"


def _median(samples: Samples | None, unit: Unit) -> str:
    return NO_MEMORY if samples is None else _figure(samples.median, unit)


def _spread(samples: Samples | None, unit: Unit) -> str:
    if samples is None:
        return ""
    low, high = samples.spread if unit == "ms" else reversed(samples.spread)
    return f"{_figure(low, unit)} to {_figure(high, unit)}"


def _published(values: Sequence[Published], batch: int, unit: Unit) -> tuple[str, str]:
    """Two cells: what is printed for this batch, else for the smallest, of the two networks; and the ratios."""
    chosen = [value for value in values if value.batch == batch] or [v for v in values if v.batch == values[0].batch]
    figures, ratios = [], []
    for value in chosen:
        ours, theirs = (NO_MEMORY if ms is None else _printed(ms, unit) for ms in (value.ours, value.theirs))
        figures.append(f"{ours} / {theirs} ({value.machine}, batch {value.batch})")
        if value.ratio is not None:
            ratios.append(f"{value.ratio:.2f} ({value.machine})")
    return ", ".join(figures), ", ".join(ratios)


def _printed(ms: float, unit: Unit) -> str:
    return f"{ms:.1f}" if unit == "ms" else f"{1e3 / ms:.4g}"
