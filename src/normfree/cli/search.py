"""``normfree search``."""

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..recipes import list_recipes
from ..runs.start import default_recipe
from ..studies.axes import label
from ..studies.search import TABLE, Tried, best_trial, load_search, repeats, run_search
from ..training import StopRequests
from ..words import counted, tell
from .parser import Parser
from .train_options import add_training, parse


def run(argv: Sequence[str]) -> int:
    """Search, and say which trial is best and how to repeat it."""
    arguments = list(argv)
    named = arguments and (arguments[0] in list_recipes() or arguments[0].endswith((".yaml", ".yml")))
    recipe = arguments.pop(0) if named else None
    options, overrides = parse(arguments, _parser())
    if recipe is not None and options.recipe is not None:
        raise UsageError(f"{recipe} and --recipe {options.recipe} both say which recipe; give one of them")
    if options.trials < 1:
        raise UsageError(f"--trials (={options.trials}) must be at least 1")
    base = recipe or options.recipe or default_recipe(overrides.get("data.source"))
    prunes = not options.no_pruning
    search = load_search(base, overrides, init=options.init, seed=options.seed, prunes=prunes)
    out = options.out or f"searches/{Path(base).stem}"
    again = f"`{shlex.join(['normfree', 'search', *argv])}` goes on"
    stop = StopRequests()
    try:
        with stop.listening(signal.SIGTERM):
            tried = run_search(
                search,
                out,
                options.trials,
                progress=not options.quiet and sys.stderr.isatty(),
                stop=stop,
                say=lambda line: tell(line, flush=True),
            )
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"{str(error).partition(';')[0] or 'interrupted'}; {again}") from None
    states = [one.state for one in tried]
    told = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    tell(f"{counted(len(tried), 'trial')}: {told}", f"  table {Path(out) / TABLE}")
    if (best := best_trial(tried)) is not None:
        tell(*_best(best), f"next: {repeats(search, best)}")
    if stop.received is not None:
        tell(f"stopped as asked; {again}")
    return 0


def _best(best: Tried) -> list[str]:
    """The best trial in two lines."""
    drawn = ", ".join(f"{path} {label(value)}" for path, value in best.fields.items())
    return [f"best: {best.score:.4g} by {drawn}", f"  run   {best.folder}"]


def _parser() -> Parser:
    parser = Parser(
        "search",
        usage="normfree search [RECIPE] --FIELD A..B [--FIELD A..B ...] [options]",
        description="Search for hyper-parameters with Optuna. A field that is given as a range or as a list is drawn "
        "anew for each trial:\n--optim.lr 0.05..2 by its logarithm, --model.drop_rate 0..0.5:linear evenly, "
        "--train.batch_size [16,32,64] one of these.\nThe same command goes on, also from several processes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_training(parser)
    own = parser.add_argument_group("the search")
    own.add_argument("--trials", type=int, default=20, metavar="N", help="how many, in all (default: 20)")
    own.add_argument("--out", metavar="FOLDER", help="folder of the search (default: searches/RECIPE)")
    own.add_argument("--seed", type=int, default=0, help="of the draws (default: 0); runs have --train.seed")
    own.add_argument("--no-pruning", action="store_true", help="train every trial to its end")
    own.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(resume=None, warm_restart=False)
    return parser
