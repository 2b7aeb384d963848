"""``normfree augment``."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..data import AutoAugment, DataConfig, TrainTransform
from ..data.mixing import Mixing
from ..data.randaugment import RandAugment
from ..errors import UsageError
from ..models.registry import default_cfg
from ..recipes import load_recipe
from ..runs.augmented import Augmentation, in_turns, operations, pipeline, read, sheet, steps_in_words
from ..runs.images import given_images
from ..runs.outputs import check_output
from ..tasks import task_of
from ..tasks.statistics import image_statistics
from ..words import tell
from .parser import Parser


def run(argv: Sequence[str]) -> int:
    """Draw images before, between and after the steps of augmentation."""
    options = _parser().parse_args(list(argv))
    for name, least, most in (("count", 1, 64), ("size", 1, 2048), ("cutout", 0, 2048)):
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise UsageError(f"--{name} (={value}) must be {least}..{most}")
    if options.layers is not None and options.layers > 100:
        raise UsageError(f"--layers (={options.layers}) must be at most 100")
    augmentation, path = _augmentation(options), _writable(Path(options.out))
    paths = given_images(options.images)
    check_output("--out", path, (path.suffix.lower(),), [*paths, options.recipe])
    images, unreadable = read(in_turns(paths)[: 1 if options.ops else options.count], augmentation)
    if options.ops:
        policy = augmentation.policy or RandAugment()
        what = "sub-policies of AutoAugment v0" if isinstance(policy, AutoAugment) else f"operations as {policy.ops}"
        rows = operations(images[0], augmentation.crop.size, policy)
    else:
        rows, what = pipeline(images, options.count, options.seed, augmentation), steps_in_words(augmentation)
    sheet(rows, augmentation.crop.size).save(path)
    tell(f"{augmentation.crop.size} px; {what}", f"picture {path}")
    return 1 if unreadable else 0


def _parser() -> Parser:
    parser = Parser(
        "augment",
        description="Draw what augmentation makes of images: as they are, cropped and flipped, mixed, after "
        "RandAugment or AutoAugment and cutout; or, with --ops, each operation of RandAugment, or each sub-policy of "
        "AutoAugment, by itself.",
        epilog="examples:\n"
        "  normfree augment photos\n"
        "  normfree augment --recipe nfnet_f3 --count 6 photos\n"
        "  normfree augment --ops photo.jpg\n"
        "  normfree augment --autoaugment v0 --ops photo.jpg",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or folders of them")
    parser.add_argument("--recipe", default="nfnet_f0", metavar="NAME", help="name or YAML file; default: nfnet_f0")
    parser.add_argument(
        "--layers", type=int, metavar="N", help="RandAugment's operations per image, instead of the recipe's"
    )
    parser.add_argument("--magnitude", type=float, metavar="M", help="of every operation, instead of the recipe's")
    parser.add_argument("--autoaugment", choices=["v0"], help="AutoAugment's policy, instead of RandAugment")
    parser.add_argument("--cutout", type=int, metavar="PX", help="side of the square cut out, instead of the recipe's")
    parser.add_argument("--sane", action="store_true", help="operations that grow with the magnitude, not as released")
    parser.add_argument("--size", type=int, metavar="PX", help="side of the images, instead of the recipe's")
    parser.add_argument("--count", type=int, default=8, metavar="N", help="images side by side; default: 8")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is random; default: 0")
    parser.add_argument(
        "--ops", action="store_true", help="each operation at magnitudes 5, 10, 15, or sub-policy, on the first image"
    )
    parser.add_argument("--out", default="augment.png", metavar="FILE", help="default: augment.png")
    return parser


def _augmentation(options: argparse.Namespace) -> Augmentation:
    recipe = load_recipe(options.recipe)
    if task_of(recipe).targets == "pairs":
        raise UsageError(
            f"recipe {options.recipe} is for {recipe.task.name}; this draws the augmentation of classification"
        )
    data, name = recipe.data, recipe.model.name
    size = options.size or data.image_size or (default_cfg(name)["input_size"][-1] if name else 224)
    cutout = data.cutout if options.cutout is None else options.cutout
    policy = _policy(options, data)
    # this mean and standard deviation leave values on the 0..255 scale
    scale = (0.0,) * data.channels, (1 / 255,) * data.channels
    how: dict[str, Any] = dict(padding=data.padding, padding_mode=data.padding_mode)
    crop = TrainTransform(size, data.crop, data.flip, *scale, **how)
    if (policy is not None or options.ops) and data.channels not in (1, 3):
        kind = type(policy or RandAugment()).__name__
        raise UsageError(f"{kind} is for 1 or 3 channels; images of {options.recipe} have {data.channels}")
    if cutout > size:
        raise UsageError(f"cutout (={cutout}) must be at most the side of the images (={size})")
    mean, _ = image_statistics(data)
    mixing = Mixing(data.mixup, data.cutmix)
    return Augmentation(crop, mixing, policy, cutout, mean, data.channels, data.value_range)


def _policy(options: argparse.Namespace, data: DataConfig) -> RandAugment | AutoAugment | None:
    """The recipe's RandAugment or AutoAugment, or what the options say instead."""
    given = [name for name in ("layers", "magnitude", "sane") if getattr(options, name) not in (None, False)]
    if options.autoaugment is not None and given:
        raise UsageError(f"--{given[0]} is for RandAugment, --autoaugment for AutoAugment; give one of them")
    if not given and (name := options.autoaugment or data.autoaugment) is not None:
        return AutoAugment(name)
    # --magnitude alone with a recipe of AutoAugment: the released number of layers
    recipes = data.randaugment_layers if data.autoaugment is None else RandAugment().layers
    layers = recipes if options.layers is None else options.layers
    magnitude = data.randaugment_magnitude if options.magnitude is None else options.magnitude
    randaugment = RandAugment(layers, magnitude, "sane" if options.sane else "released")
    return randaugment if layers or options.ops else None


def _writable(path: Path) -> Path:
    if path.suffix.lower() not in Image.registered_extensions():
        raise UsageError(f"--out {path} must end like an image file, for example in .png")
    if not path.parent.is_dir():
        raise UsageError(f"--out {path}: folder {path.parent} does not exist")
    return path
