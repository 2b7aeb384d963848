"""``normfree bench tables``."""

from collections.abc import Sequence

from ...bench import TABLES, machine, tables
from ...bench.tables import Row
from ...errors import UsageError
from ..parser import Parser
from .options import WHAT, add_common, checked, form, milliseconds, rounds_bar, say


def run(argv: Sequence[str]) -> int:
    """The papers' tables of speed, on this machine."""
    titles = "; ".join(f"{number}: {table.title}" for number, table in TABLES.items())
    parser = Parser("bench tables", description=f"Measure {WHAT['tables']}. {titles}.")
    parser.add_argument("number", nargs="*", type=int, help=f"tables; default: {' '.join(map(str, TABLES))}")
    parser.add_argument("--rows", type=int, help="the first so many of each; default: 1 on a CPU, all on a GPU")
    add_common(parser, batch=16, size=None, rounds=3)
    options = checked(parser.parse_args(list(argv)))
    for number in options.number:
        if number not in TABLES:
            raise UsageError(f"table {number} is not one of {', '.join(map(str, TABLES))}")
    if options.rows is not None and options.rows < 1:
        raise UsageError(f"--rows (={options.rows}) must be at least 1")
    device = options.device.type
    rows = options.rows or (1 if device == "cpu" else None)
    print(f"batch {options.batch}, {options.precision}, {form(options)}; {machine(device)}")
    settings = dict(batch_size=options.batch, rounds=options.rounds, rows=rows, size=options.size)
    settings |= dict(precision=options.precision, device=device, channels_last=options.channels_last)
    for number in options.number or TABLES:
        table = TABLES[number]
        print(f"\n{table.title}\n")
        print("| network | px | ms per step | smallest to largest | beside | ms | ratio | the paper's |")
        print("|---|---|---|---|---|---|---|---|")
        for row, ours, theirs in tables.measure(
            table, **settings, compiled=options.compile, started=_say_row, progress=rounds_bar()
        ):
            paper = ", ".join(f"{value:.2f} ({where})" for where, value in row.paper.items())
            px = options.size or (row.size if row.size == row.peer_size else f"{row.size}, {row.peer_size}")
            print(
                f"| {row.network} | {px} | {milliseconds(ours)} | {row.peer} | {1e3 * theirs.median:.0f} "
                f"| {ours.median / theirs.median:.2f} | {paper} |",
                flush=True,
            )
    print("\nRatios of a step's time: below 1, the Normalizer-Free network is faster. The papers' at batch 16 or 32.")
    return 0


def _say_row(row: Row) -> None:
    say(f"{row.network} and {row.peer}")
