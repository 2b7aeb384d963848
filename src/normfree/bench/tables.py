"""The papers' tables of training speed, measured anew: how long a step takes beside that of another network."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torchvision
from torch import nn

from ..data import Batch
from ..models import NFNET_LADDER, create_model, list_models, model_info, nfnet_rung
from ..training import TrainStep
from ..training.memory import no_memory
from . import published
from .published import Published, Unit
from .step import LR, Measuring, image_batch, memory_format, train_step
from .timing import ProgressBar, Samples, alternate


@dataclass(frozen=True)
class Side:
    """A network as it is trained in a table.

    Attributes:
        network: its name, ours or torchvision's.
        size: side of its images, pixels.
        label: what it is called in the table.
        options: of the network.
        sam: trained with Sharpness-Aware Minimization, the ascent on a fifth of the batch (NFNets, appendix A.4).
    """

    network: str
    size: int
    label: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    sam: bool = False

    def __str__(self) -> str:
        return self.label or f"{self.network}{' + SAM' if self.sam else ''}"


@dataclass(frozen=True)
class Row:
    """A network beside another, and what the paper says of the two."""

    ours: Side
    theirs: Side
    published: tuple[Published, ...]


@dataclass(frozen=True)
class Table:
    """A table of one of the papers.

    Attributes:
        title: which.
        clipping: threshold of Adaptive Gradient Clipping in its training; None: no clipping.
        unit: of its figures.
    """

    title: str
    clipping: float | None
    unit: Unit
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Measured:
    """What one side took.

    Attributes:
        samples: one per step; None: out of memory, even with micro-batches of one image.
        micro_batch: images per backward pass where these are fewer than the batch: their gradients were accumulated.
    """

    samples: Samples | None
    micro_batch: int | None


def _side(name: str, **settings: Any) -> Side:
    size = model_info(name).train_size if name in list_models() else 224
    return Side(name, settings.pop("size", size), **settings)


def _nfnets() -> tuple[Row, ...]:
    """NFNets beside ResNet-50 and the EfficientNets whose step takes about as long, and B7; SAM beside none."""
    nearest = {0: [0], 1: [3, 7], 2: [4], 3: [5], 4: [6], 5: [7]}
    pairs = []
    for level, others in nearest.items():
        peers = ["resnet50", *(f"bn_efficientnet_b{other}" for other in others)]
        pairs += [(_side(f"nfnet_f{level}"), _side(peer)) for peer in peers]
    with_sam = [_side(f"nfnet_f{level}", sam=True) for level in (5, 6)]
    pairs += [(with_sam[0], _side("nfnet_f5")), (with_sam[1], _side("resnet50"))]
    return tuple(Row(ours, theirs, published.steps(str(ours), str(theirs))) for ours, theirs in pairs)


def _resnets() -> tuple[Row, ...]:
    return tuple(
        Row(Side(f"nf_resnet{depth}", 224), Side(f"bn_resnet{depth}", 224), published.resnets(depth))
        for depth in published.RESNETS
    )


def _regnets() -> tuple[Row, ...]:
    """At EfficientNet's sizes."""
    rows = []
    for level in range(len(published.REGNETS)):
        theirs = _side(f"bn_efficientnet_b{level}")
        rows.append(Row(Side(f"nf_regnet_b{level}", theirs.size), theirs, published.regnets(level)))
    return tuple(rows)


def _ablation() -> tuple[Row, ...]:
    """NFNets beside the same with BatchNorm; then the other rungs of NFNet's ladder beside NFNet."""
    levels = range(len(published.BATCH_NORM))
    rows = [Row(_side(f"nfnet_f{k}"), _side(f"bn_nfnet_f{k}"), published.batch_norm(k)) for k in levels]
    for k in levels:
        for rung in NFNET_LADDER:
            name, options = nfnet_rung(rung, f"f{k}")
            if options:  # NFNet itself has none
                ours = _side(name, label=f"{name} {rung}", options=options)
                rows.append(Row(ours, _side(name), published.rung(rung, k)))
    return tuple(rows)


TABLES = {
    3: Table("NFNets, table 3: beside ResNet-50 and EfficientNets", 0.01, "ms", _nfnets()),
    4: Table("NF-ResNets, table 4: beside ResNets with BatchNorm", None, "steps per second", _resnets()),
    5: Table("NF-ResNets, table 5: NF-RegNets beside EfficientNets", None, "steps per second", _regnets()),
    6: Table("NFNets, table 6: beside the same networks with BatchNorm, and NFNet's ladder", 0.01, "ms", _ablation()),
}


def network_of(name: str, **options: Any) -> nn.Module:
    """Ours by name, else torchvision's, freshly initialized."""
    return create_model(name, **options) if name in list_models() else torchvision.models.get_model(name, **options)


def measure(
    row: Row,
    *,
    batch_size: int,
    steps: int,
    clipping: float | None = None,
    size: int | None = None,
    device: str = "cpu",
    progress: ProgressBar = iter,
    **settings: Any,
) -> tuple[Measured, Measured]:
    """Steps of a row's network and of its peer, alternating, on images that are on the device already.

    Where memory is too small for a batch, its micro-batches are halved until they fit, and their gradients accumulate
    (NFNets, appendix A.2). Weights, momentum and averages of both networks are in memory at once.

    Args:
        clipping: the table's.
        size: side of all images instead of the row's; ratios then compare with the paper's only roughly.
        settings: precision, channels_last, compiled; see :func:`.training_step`.

    Raises:
        RunFailed: a network cannot be trained so, or the images alone are too many for the memory; it is named.
    """
    runs = [
        _prepared(side, batch_size, size or side.size, clipping=clipping, device=device, **settings)
        for side in (row.ours, row.theirs)
    ]
    for _ in range(2):  # the second time, momentum and averages of both are there
        runs = [run if run is not None and run.fits() else None for run in runs]
    timed = {str(number): run for number, run in enumerate(runs) if run is not None}
    samples = alternate(timed, steps, device=device, warmup=0, progress=progress)
    ours, theirs = (
        Measured(samples.get(str(number)), run.micro_batch if run else None) for number, run in enumerate(runs)
    )
    return ours, theirs


def _prepared(
    side: Side,
    count: int,
    size: int,
    *,
    clipping: float | None,
    device: str,
    channels_last: bool = True,
    precision: str = "float32",
    compiled: bool = False,
) -> "_Run | None":
    """A network and its optimizer; None: memory is too small for these."""
    torch.manual_seed(0)
    measuring = Measuring(str(side), count, size)
    with measuring:
        batch = image_batch(count, size, device=device, channels_last=channels_last)
        try:
            model = network_of(side.network, **side.options).to(device).to(memory_format=memory_format(channels_last))
            step = train_step(model, clipping=clipping, precision=precision, compiled=compiled, sam=side.sam)
        except Exception as error:
            if not no_memory(error):
                raise
            return None
    return _Run(step, batch, measuring)


@dataclass
class _Run:
    """Steps of one side."""

    step: TrainStep
    batch: Batch
    measuring: Measuring
    micro_batch: int | None = None

    def __call__(self) -> None:
        with self.measuring:
            self.step(self.batch, LR)

    def fits(self) -> bool:
        """Take a step, with smaller micro-batches where memory is short; whether there is one that fits.

        With float16, steps until the loss scale is one with which the update is not left out.
        """
        with self.measuring:
            while True:
                try:
                    self.step(self.batch, LR)
                    while self.step.skipped:
                        self.step(self.batch, LR)
                    return True
                except Exception as error:
                    if not no_memory(error):
                        raise
                size = self.micro_batch or len(self.batch)
                if size == 1:
                    return False
                self.step.micro_batch = self.micro_batch = math.ceil(size / 2)
