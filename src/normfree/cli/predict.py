"""``normfree predict``."""

from collections.abc import Sequence

from ..errors import UsageError
from ..limits import MAX_INPUT_SIDE
from ..runs.predict import open_answers, predict
from ..tasks import PredictOptions
from .parser import Parser


def run(argv: Sequence[str]) -> int:
    """Print the predictions of a network for each image."""
    options = _parser().parse_args(list(argv))
    for name, low, high in (("top", 1, None), ("size", 1, MAX_INPUT_SIDE), ("batch_size", 1, None)):
        value, flag = getattr(options, name), name.replace("_", "-")
        if value is not None and not low <= value <= (high or value):
            raise UsageError(f"--{flag} (={value}) must be at least {low}" + (f" and at most {high}" if high else ""))
    if options.score is not None and not 0 <= options.score <= 1:
        raise UsageError(f"--score (={options.score}) must be from 0 to 1")
    if options.annotations and not options.boxes:
        raise UsageError("--annotations says which numbers images have in the file of --boxes; give --boxes, too")
    fields = {name: value for name, value in vars(options).items() if name in PredictOptions.__dataclass_fields__}
    settings = PredictOptions(**fields, as_json=options.json)
    return predict(open_answers(settings, options.checkpoint), settings)


def _parser() -> Parser:
    parser = Parser(
        "predict",
        description="Classify images: the five likeliest classes with their probabilities; of a network for regression "
        "its numbers. A network for segmentation, depth or detection draws what it makes of each image beside it, as a "
        "PNG file; one for volumes writes the mask of each in the format of its file.",
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
        help="side in pixels of what the network sees; for segmentation and depth the shorter side, for volumes that "
        "of the windows in which it sees large ones. Default: the recipe's test size",
    )
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at once; default: 1")
    parser.add_argument(
        "--antialias",
        action="store_true",
        help="shrink images with antialiasing, as most tools do, instead of as the network was evaluated",
    )
    _add_files(parser)
    return parser


def _add_files(parser: Parser) -> None:
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
        help="segmentation: write the class of each pixel as a PNG file, with the values that the training masks have; "
        "volumes: where their masks go, default: RUN/predictions",
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
