"""``normfree predict``."""

import argparse
import dataclasses
from collections.abc import Sequence

from ..data.masks import MaskValues
from ..errors import UsageError
from ..export.description import VECTORS
from ..limits import MOST_PIXELS
from .answers import Answers, predict
from .classes import Classes
from .classifier import open_classifier, open_trained
from .main import Parser
from .objects import ObjectAnswers
from .overlays import answers_for, exported_pixels, trained_pixels
from .trained import Trained
from .vectors import Labels, Numbers

# options that are for some tasks alone
FOR = dict(top="classification, multi-label", antialias="classification, multi-label, regression") | dict.fromkeys(
    ("score", "boxes", "annotations"), "detection"
)
FOR |= dict(masks="segmentation", depths="depth", out="segmentation, depth or detection")


def run(argv: Sequence[str]) -> int:
    """Say what a network makes of each image."""
    options = _parser().parse_args(list(argv))
    for name, least, most in (("top", 1, None), ("size", 1, MOST_PIXELS), ("batch_size", 1, None)):
        value, flag = getattr(options, name), name.replace("_", "-")
        if value is not None and not least <= value <= (most or value):
            raise UsageError(f"--{flag} (={value}) must be at least {least}" + (f" and at most {most}" if most else ""))
    if options.score is not None and not 0 <= options.score <= 1:
        raise UsageError(f"--score (={options.score}) must be from 0 to 1")
    if options.annotations and not options.boxes:
        raise UsageError("--annotations says which numbers images have in the file of --boxes; give --boxes, too")
    return predict(_answers(options), options)


def _parser() -> Parser:
    parser = Parser(
        "predict",
        description="Classify images: the five likeliest classes with their probabilities; of a network for regression "
        "its numbers. A network for segmentation, "
        "depth or detection draws what it makes of each image beside it, as a PNG file.",
    )
    parser.add_argument(
        "network",
        metavar="NETWORK",
        help="run folder or file of weights; an .onnx or .pt2 file of normfree export; or the name of a model, for its "
        "published weights",
    )
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or folders of them")
    parser.add_argument("--top", type=int, help="classes per image; default: 5")
    parser.add_argument("--checkpoint", choices=["last", "best"], help="default: last")
    parser.add_argument("--device", default="auto", help="default: cuda where there is one, else cpu")
    parser.add_argument(
        "--size",
        type=int,
        metavar="N",
        help="side in pixels of what the network sees; for segmentation and depth the shorter side. Default: the "
        "recipe's test size",
    )
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at once; default: 1")
    parser.add_argument(
        "--antialias",
        action="store_true",
        help="shrink images with antialiasing, as most tools do, instead of as the network was evaluated",
    )
    files = parser.add_argument_group("files")
    files.add_argument("--json", action="store_true", help="print one line of JSON per image, in UTF-8")
    files.add_argument("--csv", metavar="FILE", help="write a table; a row per image, for detection per object")
    files.add_argument(
        "--out",
        metavar="FOLDER",
        help="where pictures of other tasks than classification go; default: RUN/predictions, or none where --masks, "
        "--depths or --boxes says where answers go",
    )
    files.add_argument(
        "--masks",
        metavar="FOLDER",
        help="segmentation: write the class of each pixel as a PNG file, with the values that the training masks have",
    )
    files.add_argument(
        "--depths",
        metavar="FOLDER",
        help="depth: write the distance of each pixel as a PNG file of 16 bits in millimetres; an image with a pixel "
        "beyond 65.535 m as a .npy file in metres",
    )
    files.add_argument(
        "--boxes",
        metavar="FILE",
        help="detection: write all objects in the layout of COCO's results (JSON), masks as run lengths; of any score "
        "unless --score is given",
    )
    files.add_argument(
        "--annotations",
        metavar="FILE",
        help="detection: take the numbers of images and categories in --boxes from this file of COCO's format",
    )
    files.add_argument(
        "--score", type=float, help="detection: least score of objects that are told and drawn, from 0.05; default: 0.5"
    )
    return parser


def _answers(options: argparse.Namespace) -> Answers:
    """The network, with what is asked of it.

    Raises:
        UsageError: no such network, or an option that is not for its task.
    """
    trained = open_trained(options.network, options.checkpoint)
    if trained is not None and trained.dense:
        task = trained.recipe.task.name
        _check(options, task)
        _resize(trained, options.size)
        if task == "detection":
            return ObjectAnswers(trained, options)
        data = trained.recipe.data
        values = MaskValues(len(trained.classes), data.mask_values, data.mask_ignored)
        return answers_for(trained_pixels(trained, options.device), values, options)
    network = open_classifier(options.network, options.checkpoint, options.device, trained)
    _check(options, network.task)
    if network.exported:
        for flag in ("size", "masks", "depths"):
            if getattr(options, flag):
                shape = " x ".join(map(str, network.preprocessing.shape[1:]))
                told = f"sees the centre of images, {shape} pixels" if flag != "size" else f"takes images of {shape}"
                raise UsageError(f"--{flag} is for runs and checkpoints; {options.network} {told}")
    if network.task not in VECTORS:
        return answers_for(exported_pixels(network), MaskValues(len(network.classes or ())), options)
    if options.size:
        view = dataclasses.replace(network.preprocessing, size=options.size)
        network = dataclasses.replace(network, preprocessing=view)
    made = {"multi-label": Labels, "regression": Numbers}.get(network.task, Classes)
    return made(network, options.network, options.top or 5, antialias=options.antialias)


def _resize(trained: Trained, size: int | None) -> None:
    """Have a network for places see images of another size."""
    if size is None:
        return
    if trained.recipe.task.name == "detection":
        trained.recipe.data.test_size, trained.recipe.data.test_width = size, None
    else:
        trained.recipe.data.short_side = size


def _check(options: argparse.Namespace, task: str) -> None:
    """No option that is for other tasks alone."""
    this = "classifies images" if task in ("classification", "multi-label") else f"is for {task}"
    for name, tasks in FOR.items():
        if task not in tasks and getattr(options, name) not in (None, False):
            those = "that classify images" if "classification" in tasks else f"for {tasks}"
            raise UsageError(f"--{name} is for networks {those}; {options.network} {this}")
