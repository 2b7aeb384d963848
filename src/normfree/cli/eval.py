"""``normfree eval``."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..data import Loader
from ..data.config import MOST_WORKERS
from ..data.contents import check_labels, check_test_masks
from ..errors import RunFailed, UsageError
from ..limits import MOST_PIXELS
from ..recipes import open_test_images
from ..tasks.confusion import Confusion
from ..tasks.depth import DepthErrors
from ..tasks.detection import AveragePrecision
from ..tasks.multilabel import LabelPrecision
from ..tasks.regression import RegressionErrors
from ..tasks.segmentation import Overlap
from ..training import evaluate, pick_device
from ..words import counted, tell
from .answers import TABLES, check_csv, writing
from .foreign import UNSAID
from .main import Parser
from .measured import Metrics, measured
from .outputs import check_output
from .trained import Trained, evaluation_transform, load_trained


def run(argv: Sequence[str]) -> int:
    """Measure a trained network on the test split of its images, or of others."""
    parser = Parser(
        "eval",
        description="Measure a trained network on the test split: top-1, top-5, loss and balanced accuracy, precision, "
        "recall and F1 of each class, and the confusion matrix; for several classes per image the mean average "
        "precision; for regression R2 and the mean absolute error; for segmentation the mean IoU and that of each "
        "class; for depth five metrics; for detection COCO's average precision.",
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
    options = parser.parse_args(list(argv))
    if options.batch_size < 1 or not 0 <= options.workers <= MOST_WORKERS:
        raise UsageError(
            f"--batch-size (={options.batch_size}) must be at least 1, --workers (={options.workers}) at least 0 "
            f"and at most {MOST_WORKERS}"
        )
    if options.size is not None and not 1 <= options.size <= MOST_PIXELS:
        raise UsageError(f"--size (={options.size}) must be at least 1 and at most {MOST_PIXELS}")
    if options.csv:
        check_csv(options.csv, [options.run, options.data or ""])
    trained = load_trained(options.run, options.checkpoint, options.weights, exported=True)
    data = trained.recipe.data
    if options.data is None and data.source == UNSAID:
        raise UsageError(f"{options.run} does not say where images are; give --data SOURCE")
    if options.csv:
        check_output("--csv", options.csv, TABLES, [data.source])
    if options.size:
        data.test_size, data.test_width = options.size, None
    about = trained.classes, trained.source, options.data, trained.held_out
    source = open_test_images(trained.recipe, *about)
    if trained.task == "multi-label":
        check_labels(source.test)
    if trained.task == "segmentation" and not data.allow_missing_classes:
        check_test_masks(source)
    tell(*source.told, file=sys.stderr)
    device = pick_device(options.device)
    transform, dense = evaluation_transform(trained), trained.dense
    kind = dict(pairs=dense, vectors=trained.task in ("multi-label", "regression"))
    kind |= dict(workers=options.workers, timeout=data.timeout)
    loader = Loader(source.test, transform, options.batch_size, **kind)
    loader.say = lambda line: tell(line, file=sys.stderr)
    metrics = metrics_of(trained)
    scores, unreadable = evaluate(trained.model.to(device), loader, metrics, device)
    tell(*(f"skipped unreadable image {one}" for one in unreadable), file=sys.stderr)
    if not scores["images"]:
        raise RunFailed(f"none of the {len(unreadable)} images could be read")
    if len(unreadable) > data.max_unreadable:
        raise RunFailed(f"{len(unreadable)} images are unreadable, data.max_unreadable is {data.max_unreadable}")
    if missing := _without(metrics):
        raise RunFailed(f"none of the {scores['images']} test images of {options.data or data.source} has {missing}")
    found, images = measured(metrics, trained.names), options.data or data.source
    if options.json:
        about = dict(network=trained.source, model=trained.recipe.model.name, task=trained.task)
        print(found.as_json(**about, data=images))
    else:
        tell(f"{trained.source}: {trained.recipe.model.name} on {images}, {counted(scores['images'], 'image')}")
        print(found.as_text())
    if options.csv:
        try:
            Path(options.csv).write_text(found.as_csv(), encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise writing(options.csv, error) from error
    return 0


def metrics_of(trained: Trained) -> Metrics:
    """What its task measures."""
    if trained.recipe.task.name == "detection":
        return AveragePrecision(len(trained.classes), trained.recipe.task.masks)
    if trained.recipe.task.name == "segmentation":
        return Overlap(len(trained.classes))
    if trained.task == "multi-label":
        return LabelPrecision(len(trained.classes))
    if trained.task == "regression":
        task = trained.recipe.task
        return RegressionErrors(torch.tensor(task.target_mean), torch.tensor(task.target_std), in_units=True)
    return DepthErrors() if trained.recipe.task.name == "depth" else Confusion(len(trained.classes))


def _without(metrics: Metrics) -> str | None:
    """What there is none of in all images, where nothing could be measured: numbers would be of nothing."""
    if isinstance(metrics, AveragePrecision):
        return None if sum(metrics.objects()) else "an object"
    if isinstance(metrics, DepthErrors):
        return None if metrics.pixels else "a pixel whose depth is known"
    if isinstance(metrics, LabelPrecision):
        return None if any(metrics.images()) else "a class"
    return "a pixel of a class" if isinstance(metrics, Overlap) and not metrics.confusion.any() else None
