"""``normfree predict``."""

import sys
from collections.abc import Sequence

import torch

from ..data import UnreadableImage, decode_image, find_images
from ..errors import UsageError
from ..training import pick_device
from .main import Parser
from .trained import evaluation_transform, load_trained


def run(argv: Sequence[str]) -> int:
    """Print the likeliest classes of each image."""
    parser = Parser("predict", description="Classify images: the five likeliest classes with their probabilities.")
    parser.add_argument("run", metavar="RUN", help="run folder, or a .safetensors file of one")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or folders of them")
    parser.add_argument("--top", type=int, default=5, help="classes per image; default: 5")
    parser.add_argument("--checkpoint", choices=["last", "best"], help="default: last")
    parser.add_argument("--device", default="auto", help="default: cuda where there is one, else cpu")
    options = parser.parse_args(list(argv))
    if options.top < 1:
        raise UsageError(f"--top (={options.top}) must be at least 1")
    trained = load_trained(options.run, options.checkpoint)
    paths = find_images(options.images)
    device, transform = pick_device(options.device), evaluation_transform(trained)
    model, unreadable = trained.model.to(device), 0
    for path in paths:
        try:
            image = decode_image(path, trained.recipe.data.channels)
        except UnreadableImage as error:
            print(f"skipped unreadable image {error}", file=sys.stderr)
            unreadable += 1
            continue
        with torch.inference_mode():
            probabilities = model(transform(image)[None].to(device)).float().softmax(1)[0].cpu()
        print(path)
        top = probabilities.topk(min(options.top, len(trained.classes)))
        for probability, label in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            print(f"  {probability:7.2%}  {trained.classes[label]}")
    if unreadable == len(paths):
        raise UsageError(f"none of the {len(paths)} images could be read")
    return 1 if unreadable else 0
