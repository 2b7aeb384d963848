"""``normfree eval``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..data.config import MAX_WORKERS
from ..errors import UsageError
from ..limits import MAX_INPUT_SIDE
from ..runs.evaluate import evaluate
from ..runs.foreign import UNKNOWN_SOURCE
from ..runs.load import load_trained
from ..runs.outputs import check_output
from ..runs.predict import TABLES, check_csv
from ..tasks.answers import writing
from ..words import counted, tell
from .parser import Parser


def run(argv: Sequence[str]) -> int:
    """Measure a trained network on the test split of its images, or of others."""
    options = _parser().parse_args(list(argv))
    _check_numbers(options)
    if options.csv:
        check_csv(options.csv, [options.run, options.data or ""])
    trained = load_trained(options.run, options.checkpoint, options.weights, exported=True)
    data = trained.recipe.data
    if options.data is None and data.source == UNKNOWN_SOURCE:
        raise UsageError(f"{options.run} does not say where images are; give --data SOURCE")
    if options.csv:
        check_output("--csv", options.csv, TABLES, [data.source])
    result = evaluate(
        trained,
        options.data,
        size=options.size,
        batch_size=options.batch_size,
        workers=options.workers,
        device=options.device,
    )
    if options.json:
        network = dict(network=trained.source, model=trained.recipe.model.name, task=trained.task.kind)
        print(result.measured.as_json(**network, data=result.data))
    else:
        tell(f"{trained.source}: {trained.recipe.model.name} on {result.data}, {counted(result.images, 'image')}")
        print(result.measured.as_text())
    if options.csv:
        try:
            Path(options.csv).write_text(result.measured.as_csv(), encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise writing(options.csv, error) from error
    return 0


def _parser() -> Parser:
    parser = Parser(
        "eval",
        description="Measure a trained network on the test split: top-1, top-5, loss and balanced accuracy, precision, "
        "recall and F1 of each class, and the confusion matrix; for several classes per image the mean average "
        "precision; for regression R2 and the mean absolute error; for segmentation the mean IoU and that of each "
        "class; for volumes the Dice coefficient of each class; for depth five metrics; for detection COCO's average "
        "precision.",
    )
    parser.add_argument("run", metavar="RUN", help="run folder, file of weights, exported file, or pretrained:NAME")
    parser.add_argument(
        "--data",
        metavar="SOURCE",
        help="other images for the same task: imagefolder:PATH, wds:..., masks:PATH, coco:PATH, ... (same classes)",
    )
    parser.add_argument("--checkpoint", choices=["last", "best"], help="default: last")
    parser.add_argument("--weights", choices=["ema", "raw"], help="averaged or raw; default: averaged where there are")
    parser.add_argument("--size", type=int, help="side of the images in pixels; default: the recipe's test size")
    parser.add_argument("--batch-size", type=int, default=64, help="default: 64")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images; default: 0")
    parser.add_argument("--device", default="auto", help="default: cuda where there is one, else cpu")
    parser.add_argument("--json", action="store_true", help="print everything as one line of JSON, in UTF-8")
    parser.add_argument("--csv", metavar="FILE", help="write a table: a row per class, or the scores in one row")
    return parser


def _check_numbers(options: argparse.Namespace) -> None:
    if options.batch_size < 1 or not 0 <= options.workers <= MAX_WORKERS:
        raise UsageError(
            f"--batch-size (={options.batch_size}) must be at least 1, --workers (={options.workers}) at least 0 "
            f"and at most {MAX_WORKERS}"
        )
    if options.size is not None and not 1 <= options.size <= MAX_INPUT_SIDE:
        raise UsageError(f"--size (={options.size}) must be at least 1 and at most {MAX_INPUT_SIDE}")
