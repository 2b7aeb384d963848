"""Segmentation of volumes: a class for each voxel, with the Dice coefficient as the score."""

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..data import Batch, DataConfig, HeldOut, Loader, Share, Source
from ..data.memory import MemorySplit
from ..data.pixels import IGNORE
from ..data.values import ZSCORE
from ..data.volume_folders import VolumePairs, volume_folder
from ..data.volumes import CLASSES, MADE, VolumeTransform, volumes
from ..errors import UsageError
from ..models import UNet
from ..recipes import Recipe
from .answers import Answers, PredictOptions
from .gallery import Gallery, Look
from .measured import Measured, named_rows
from .pairs import refuse_mixing
from .segmentation import Overlap, Segmentation, unet_of
from .statistics import image_statistics
from .task import refuse_fields, refuse_masks, shape_of
from .trained import ReadyNetwork, Trained
from .volume_answers import VolumeAnswers
from .windows import WHOLE, in_windows

_OTHERS: dict[str, Any] = dict(short_side=None, scale=(1.0, 1.0), color=False)


class Volumes(Segmentation):
    """Volumes and masks of a source, cross-entropy and soft Dice loss over voxels, Dice coefficient.

    The network is a U-Net of three dimensions. It is trained on patches and evaluated on whole volumes, large ones in
    windows (:func:`.in_windows`). Volumes are not drawn.

    Args:
        source, data, options: as :class:`.PairTask`.
    """

    name = kind = "volumes"
    purpose = "is for volumes"
    output = "logits"
    holds_out = True
    options = frozenset({"masks"})
    score, score_label = "dice", "test Dice"

    @classmethod
    def open(
        cls, recipe: Recipe, source: str, *, held_out: HeldOut | None = None, known: Sequence[str] | None = None
    ) -> Source[Any]:
        data = recipe.data
        kind, _, rest = source.partition(":")
        if kind != "volumes":
            raise UsageError(f'data.source (={source!r}) must be "volumes:N" or "volumes:PATH" for volumes')
        if MADE.fullmatch(rest):
            return _made(recipe, rest)
        if held_out is None and data.val_fraction is not None and known is None:
            held_out = HeldOut(data.val_fraction, data.val_seed)
        opened = volume_folder(
            rest,
            data.channels,
            values=data.mask_values,
            ignored=data.mask_ignored,
            spacing=data.spacing,
            held_out=held_out,
            known=known,
        )
        if data.value_range == "auto":
            data.value_range = ZSCORE
        return opened

    @classmethod
    def build_network(cls, recipe: Recipe, classes: Sequence[str]) -> nn.Module:
        if not recipe.model.is_unet:
            raise UsageError(f"model.name (={recipe.model.name}) must be a U-Net of volumes, such as nf_unet3d")
        return unet_of(recipe, classes, 3)

    @classmethod
    def set_sizes(cls, recipe: Recipe, model: nn.Module) -> None:
        """The patches' size is the model's where the recipe leaves it open; windows in evaluation are as patches."""
        data = recipe.data
        if data.test_size is None:
            same = dict(test_size=data.image_size, test_width=data.image_width, test_depth=data.image_depth)
            for name, size in same.items():
                setattr(data, name, getattr(data, name) or size)
        super().set_sizes(recipe, model)

    @classmethod
    def resolve(cls, recipe: Recipe, source: Source[Any]) -> None:
        if recipe.train.parallel == "fsdp" and isinstance(source.train, VolumePairs):
            raise UsageError("train.parallel (='fsdp') needs volumes of one size; take ddp for volumes in files")

    @classmethod
    def refuse_others(cls, data: DataConfig) -> None:
        refuse_mixing(data, "volumes")
        refuse_fields(data, _OTHERS, "images")

    @classmethod
    def input_shape(
        cls, data: DataConfig, height: int | None, width: int | None = None, depth: int | None = None
    ) -> tuple[int, ...]:
        channels, height, width = shape_of(data, height, width)
        return channels, depth or height, height, width

    @classmethod
    def train_transform(cls, data: DataConfig) -> Any:
        if data.crop not in ("random", "none"):
            raise UsageError(f"data.crop (={data.crop!r}) must be 'random' or 'none' for volumes")
        if data.foreground and data.crop != "random":
            raise UsageError(f"data.foreground (={data.foreground:g}) is for data.crop random; it is {data.crop}")
        options: dict[str, Any] = dict(random=data.crop == "random", foreground=data.foreground, flip=data.flip)
        return _transform(cls.input_shape(data, data.image_size, data.image_width, data.image_depth), data, options)

    @classmethod
    def test_transform(cls, data: DataConfig) -> Any:
        """The whole volume; its :meth:`~.VolumeTransform.view` is a window of it."""
        shape = cls.input_shape(data, data.test_size, data.test_width, data.test_depth)
        return _transform(shape, data, dict(crop=False))

    @classmethod
    def loader(cls, split: Any, transform: Any, batch_size: int, **options: Any) -> Loader:
        """Batches of patches; whole volumes come one by one in each process, as they have sizes of their own."""
        files = isinstance(split.split if isinstance(split, MemorySplit) else split, VolumePairs)
        if files and not transform.crop:
            batch_size = options.get("share", Share()).world
        return super().loader(split, transform, batch_size, **options)

    @classmethod
    def check_test(cls, source: Source[Any], data: DataConfig) -> None:
        if isinstance(source.test, VolumePairs):  # made volumes have every class
            super().check_test(source, data)

    def check_targets(self, data: DataConfig) -> list[str]:
        return self.check_target_files(data) if isinstance(self.source.train, VolumePairs) else []

    def probe(self, images: Tensor) -> Tensor:
        """The window in the centre of volumes, which is what signals are recorded of."""
        return self.test_transform(self.data).centre(images)

    @classmethod
    def metrics_of(cls, trained: Trained) -> "Dice":
        whole = WHOLE if isinstance(trained.model, UNet) else 0  # an exported file takes one size
        return Dice(len(trained.classes), window_of(trained), whole)

    @classmethod
    def measured(cls, metrics: Overlap, names: Sequence[str]) -> Measured:
        assert isinstance(metrics, Dice)
        scores = metrics.compute()
        rows = named_rows(names, "dice", metrics.dice_per_class())
        line = f"Dice {scores['dice']:.2%}   voxels {scores['voxel_accuracy']:.2%}   loss {scores['loss']:.4f}"
        return Measured([line], scores, rows)

    @classmethod
    def answers(cls, network: ReadyNetwork, options: PredictOptions) -> Answers:
        return VolumeAnswers(network, options)

    @classmethod
    def gallery(cls, look: Look) -> Gallery:
        raise UsageError("networks for volumes have no pictures")

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean over volumes of their mean cross-entropy plus :func:`soft_dice_loss`; output (N, C, D, H, W)."""
        return super().loss(output, batch) + soft_dice_loss(output, batch.target_tensor).mean()

    def metrics(self) -> "Dice":
        return Dice(self.classes, self.test_transform(self.data).size)


class Dice(Overlap):
    """The Dice coefficient ``2 |A and B| / (|A| + |B|)`` of each class, over all test voxels.

    Args:
        classes: their number.
        window, whole: of :func:`.in_windows`; without a window, the network sees volumes of any size at once.
    """

    def __init__(self, classes: int, window: tuple[int, int, int] | None = None, whole: int = WHOLE):
        super().__init__(classes)
        self.window, self.whole = window, whole

    def answer(self, model: nn.Module, batch: Batch) -> Tensor:
        """The network's output for whole volumes: (N, C, D, H, W)."""
        return model(batch.images) if self.window is None else in_windows(model, batch.images, self.window, self.whole)

    def dice_per_class(self) -> list[float]:
        """Of each class; NaN of one that is neither in the masks nor in the answers.

        Example:
            >>> dice = Dice(2)
            >>> dice.confusion += torch.tensor([[6, 1], [1, 2]])
            >>> [round(value, 3) for value in dice.dice_per_class()]
            [0.857, 0.667]
        """
        return [2 * iou / (1 + iou) for iou in self.per_class()]

    def compute(self) -> dict[str, float]:
        """Mean over the classes but the first, the background; share of voxels right, mean loss, number of volumes."""
        known = [value for value in self.dice_per_class()[1:] if not math.isnan(value)]
        scores = super().compute()
        return dict(
            dice=sum(known) / max(1, len(known)),
            voxel_accuracy=scores["pixel_accuracy"],
            loss=scores["loss"],
            images=scores["images"],
        )


def soft_dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 minus the Dice coefficient of probabilities, by volumes: (N,); the mean over the classes but the first.

    ``2 sum(p t) / (sum(p) + sum(t))`` as in Milletari et al. 2016 (arXiv:1606.04797) without its squares, over voxels
    that are not ignored. Of a class that is not in the volume, and is not seen in it, the coefficient is 1.

    Args:
        logits: (N, C, *places); targets: (N, *places), classes.

    Example:
        >>> targets = torch.tensor([[0, 1, 1, 0]])
        >>> right = 20.0 * F.one_hot(targets, 2).movedim(-1, 1).float()
        >>> bool(soft_dice_loss(right, targets) < 1e-4)
        True
    """
    known = (targets != IGNORE).flatten(1).unsqueeze(1)
    truth = F.one_hot(targets.where(targets != IGNORE, 0), logits.shape[1]).movedim(-1, 1).flatten(2) * known
    said = logits.float().softmax(1).flatten(2) * known
    both, each = (said * truth).sum(2), said.sum(2) + truth.sum(2)
    return 1 - ((2 * both + 1e-3) / (each + 1e-3))[:, 1:].mean(1)


def window_of(trained: Trained) -> tuple[int, int, int]:
    """(D, H, W) of the windows in which a network is evaluated."""
    _, depth, height, width = trained.shape
    return depth, height, width


def _transform(shape: tuple[int, ...], data: DataConfig, options: dict[str, Any]) -> VolumeTransform:
    _, depth, height, width = shape
    values = (0.0, 255.0) if data.value_range in (None, "auto") else data.value_range
    return VolumeTransform((depth, height, width), *image_statistics(data), values, **options)


def _made(recipe: Recipe, text: str) -> Source[Any]:
    data = recipe.data
    refuse_masks(recipe)
    if data.channels != 1:
        raise UsageError(f"data.channels (={data.channels}) must be 1 for volumes:{text}")
    if data.val_fraction is not None:
        raise UsageError(f"data.val_fraction (={data.val_fraction:g}): volumes:{text} has test volumes of its own")
    if data.spacing is not None:
        raise UsageError(f"data.spacing (={list(data.spacing)}) is for volumes in files, not for volumes:{text}")
    train, test = volumes(text)
    return Source(train, test, list(CLASSES))
