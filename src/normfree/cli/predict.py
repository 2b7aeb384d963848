"""``normfree predict``."""

import json
import sys
from collections.abc import Sequence

from ..data import UnreadableImage, decode_image
from ..errors import UsageError
from .classifier import open_classifier, open_trained, view_of
from .images import given_images
from .main import Parser
from .objects import predict_objects
from .overlays import exported_pixels, predict_pixels, trained_pixels


def run(argv: Sequence[str]) -> int:
    """Print the likeliest classes of each image."""
    parser = Parser(
        "predict",
        description="Classify images: the five likeliest classes with their probabilities. A network for segmentation, "
        "depth or detection draws what it makes of each image beside it, as a PNG file.",
    )
    parser.add_argument(
        "network",
        metavar="NETWORK",
        help="run folder, or a .safetensors file of one; an .onnx or .pt2 file of normfree export; or the name of a "
        "model, for its published weights",
    )
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or folders of them")
    parser.add_argument("--top", type=int, help="classes per image; default: 5")
    parser.add_argument("--checkpoint", choices=["last", "best"], help="default: last")
    parser.add_argument("--device", default="auto", help="default: cuda where there is one, else cpu")
    parser.add_argument(
        "--antialias",
        action="store_true",
        help="shrink images with antialiasing, as most tools do, instead of as the network was evaluated",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="where pictures of other tasks than classification go; default: RUN/predictions",
    )
    parser.add_argument("--score", type=float, help="least score of objects that are drawn, from 0.05; default: 0.5")
    parser.add_argument("--json", action="store_true", help="one line of JSON per image")
    options = parser.parse_args(list(argv))
    if options.top is not None and options.top < 1:
        raise UsageError(f"--top (={options.top}) must be at least 1")
    if options.score is not None and not 0 <= options.score <= 1:
        raise UsageError(f"--score (={options.score}) must be from 0 to 1")
    trained = open_trained(options.network, options.checkpoint)
    if trained is not None and trained.recipe.task.name == "detection":
        return predict_objects(trained, options)
    if trained is not None and trained.dense:
        return predict_pixels(trained_pixels(trained, options.device), options)
    classifier = open_classifier(options.network, options.checkpoint, options.device, trained)
    channels = classifier.preprocessing.channels
    if channels not in (1, 3):
        raise UsageError(f"{options.network} takes images of {channels} channels; files are decoded to 1 or 3")
    if classifier.task != "classification":
        return predict_pixels(exported_pixels(classifier), options)
    for name in ("out", "score"):
        if getattr(options, name) is not None:
            others = "segmentation, depth or detection" if name == "out" else "detection"
            raise UsageError(f"--{name} is for networks for {others}; {options.network} classifies images")
    paths = given_images(options.images)
    transform, unreadable = view_of(classifier.preprocessing, antialias=options.antialias), 0
    for path in paths:
        try:
            image = decode_image(path, channels)
        except UnreadableImage as error:
            print(f"skipped unreadable image {error}", file=sys.stderr)
            unreadable += 1
            continue
        top = classifier.run(transform(image)[None])[0].softmax(0)
        top = top.topk(min(options.top or 5, len(top)))
        found = [
            dict(name=classifier.label(index), index=index, probability=probability)
            for probability, index in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ]
        print(_as_json(str(path), found) if options.json else _as_text(str(path), found), flush=options.json)
    if unreadable == len(paths):
        raise UsageError(f"none of the {len(paths)} images could be read")
    return 1 if unreadable else 0


def _as_text(path: str, found: list[dict]) -> str:
    return "\n".join([path, *(f"  {c['probability']:7.2%}  {c['name']}" for c in found)])


def _as_json(path: str, found: list[dict]) -> str:
    return json.dumps(dict(path=path, classes=found), ensure_ascii=False)
