"""Fields of a recipe that follow from its training images, where it leaves them open: ``data.decides``."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError, did_you_mean
from ..words import counted, shown

HELD_OUT, MANY, HELD_OUT_OF_MANY = 0.2, 5_000, 0.1  # part of the images that is for testing; of how many less is
SMALL = 160  # pixels of a side; larger images are photos
MIN_STEPS, MIN_TUNING_STEPS = 2_000, 600  # from scratch, and from trained weights
HUGE = 1_000  # pixels of a side, which takes long to decode
PASSES = 800  # over a single image; fewer over more images
SIZES = ("data.image_size", "data.test_size", "data.resize_margin")
# a field, and those of which giving one closes it, too
CLOSED_BY = {
    "train.steps": ("train.epochs",),
    "optim.warmup_steps": ("optim.warmup_epochs",),
    "optim.lr": ("optim.lr_reference_batch",),
}
Values = Mapping[str, Any]  # by dotted path


@dataclass(frozen=True)
class Facts:
    """What the fields follow from.

    Attributes:
        images: of training.
        side: median of the shorter sides of the images, in pixels.
        grey: whether all images are grey.
        pretrained: whether training starts from other weights.
        bfloat16: whether the device is a CPU that computes bfloat16 itself.
    """

    images: int
    side: int
    grey: bool = False
    pretrained: bool = False
    bfloat16: bool = False


def decide(facts: Facts, fixed: Values) -> dict[str, Any]:
    """The values of the fields in :data:`FIELDS` that are not ``fixed``, by dotted path.

    Args:
        fixed: what is given, of which the others follow, too: "train.batch_size", "train.epochs", ...

    Example:
        >>> fields = decide(Facts(images=300, side=64), {})
        >>> fields["train.steps"], fields["train.batch_size"], fields["data.image_size"]
        (2000, 16, 64)
        >>> decide(Facts(images=300, side=64), {"train.epochs": 10.0, "train.batch_size": 30})["optim.warmup_steps"]
        5
    """
    values = dict(fixed)
    for path, rule in FIELDS.items():
        if path not in fixed:
            values[path] = rule(facts, values)
    return {path: value for path, value in values.items() if path not in fixed}


def open_fields(decides: Sequence[str], content: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields of ``data.decides`` that a recipe and its overrides leave open.

    Args:
        content: the recipe's sections, overrides included.

    Raises:
        UsageError: no rule decides a field; the nearest ones are suggested.

    Example:
        >>> open_fields(["train.steps", "optim.lr"], {"train": {"epochs": 3}})
        ('optim.lr',)
    """
    for path in decides:
        if path not in FIELDS and path != "data.val_fraction":
            hint = did_you_mean(path, FIELDS, f"it may hold {', '.join(FIELDS)}")
            raise UsageError(f"data.decides: {shown(path)} does not follow from the images; {hint}")
    given = {f"{section}.{name}" for section, fields in content.items() for name in fields}
    return tuple(path for path in decides if not {path, *CLOSED_BY.get(path, ())} & given)


def without_sizes(decides: Sequence[str]) -> tuple[str, ...]:
    """The fields without those of the size of images, which a network or its weights decide."""
    return tuple(path for path in decides if path not in SIZES)


def in_words(facts: Facts, values: Values, decides: Collection[str]) -> list[str]:
    """What was decided, in two lines for the user.

    Args:
        values: of all fields in :data:`FIELDS`; decides: those that were left open.
    """
    steps, batch = _length(facts, values), values["train.batch_size"]
    passes = counted(max(1, round(_passes(facts, values))), "pass", "passes")
    what = "fine-tuning" if facts.pretrained else "training"
    size = "" if values["data.image_size"] is None else f" at {values['data.image_size']} px"
    start = f"{counted(facts.images, 'training image')}, median side {facts.side} px: {what} takes "
    start += f"{counted(steps, 'step')} of {batch} ({passes}){size}, "
    start += f"learning rate {values['optim.lr']:g}"
    if values["optim.warmup_steps"] is not None:
        start += f" after {counted(values['optim.warmup_steps'], 'step')} of warm-up"
    given = [path for path in FIELDS if path not in decides]
    how = "; any of it can be given, for example --train.steps N" if not given else f"; given: {', '.join(given)}"
    if facts.side < HUGE or values["data.image_size"] is None:
        return [start + how]
    size = 2 * values["data.image_size"]
    return [start + how, f"decoding such large images takes most of the time; copies of about {size} px train faster"]


def _image_size(facts: Facts, values: Values) -> int:
    """Small images are enlarged to 64 pixels, of which a stem of stride 2 leaves 4 x 4 positions in the last stage."""
    return 64 if facts.side <= 80 else 96 if facts.side <= SMALL else 128


def _test_size(facts: Facts, values: Values) -> Any:
    return values["data.image_size"]


def _margin(facts: Facts, values: Values) -> int:
    """Small images are tested whole, photos without their border."""
    return 0 if facts.side <= SMALL else (values["data.test_size"] or 256) // 8


def _crop(facts: Facts, values: Values) -> str:
    return "shift" if facts.side <= SMALL else "distorted"


def _flip(facts: Facts, values: Values) -> bool:
    """Small grey images are mostly characters, which are others when mirrored."""
    return not (facts.grey and facts.side <= 40)


def _batch(facts: Facts, values: Values) -> int:
    return min(facts.images, 16 if facts.images < 2_000 else 32 if facts.images < 20_000 else 64)


def _steps(facts: Facts, values: Values) -> int:
    """Passes fall with the cube root of the number of images; few images still get a minimum of steps."""
    seen = PASSES * facts.images ** (2 / 3) / (3 if facts.pretrained else 1)
    least = MIN_TUNING_STEPS if facts.pretrained else MIN_STEPS
    return max(least, 100 * round(seen / values["train.batch_size"] / 100))


def _lr(facts: Facts, values: Values) -> float:
    return round((0.01 if facts.pretrained else 0.1) * math.sqrt(values["train.batch_size"] / 16), 3)


def _warmup(facts: Facts, values: Values) -> int:
    return _length(facts, values) // 20


def _average(facts: Facts, values: Values) -> float:
    """The average spans a fortieth of the run."""
    return round(1 - 40 / max(400, _length(facts, values)), 4)


def _eval_every(facts: Facts, values: Values) -> float:
    """Twenty evaluations in a run, at most one for each pass."""
    return max(1.0, round(_passes(facts, values) / 20, 2))


def _passes(facts: Facts, values: Values) -> float:
    return _length(facts, values) * values["train.batch_size"] / facts.images


def _length(facts: Facts, values: Values) -> int:
    """Steps of the run."""
    epochs, whole = values.get("train.epochs"), max(1, facts.images // values["train.batch_size"])
    return values["train.steps"] or max(1, round((epochs or 1) * whole))


# in the order in which they are decided: each may follow from those before it
FIELDS: dict[str, Callable[[Facts, Values], Any]] = {
    "data.image_size": _image_size,
    "data.test_size": _test_size,
    "data.resize_margin": _margin,
    "data.flip": _flip,
    "train.batch_size": _batch,
    "train.steps": _steps,
    "data.crop": _crop,
    "train.eval_every": _eval_every,
    "optim.lr": _lr,
    "optim.warmup_steps": _warmup,
    "optim.ema_decay": _average,
    "train.precision": lambda facts, values: "bfloat16" if facts.bfloat16 else "float32",
}
