"""Segmentation of volumes: a class for each voxel, with the Dice coefficient as the score."""

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..data import Batch, DataConfig, HeldOut, Source
from ..data.pixels import IGNORE
from ..data.volumes import CLASSES, VolumeTransform, volumes
from ..errors import UsageError
from ..recipes import Recipe
from .answers import Answers, PredictOptions
from .gallery import Gallery, Look
from .measured import Measured, named_rows
from .pairs import refuse_mixing
from .segmentation import Overlap, Segmentation, unet_of
from .statistics import image_statistics
from .task import refuse_fields, refuse_masks
from .trained import ReadyNetwork, Trained

_OTHERS: dict[str, Any] = dict(short_side=None, scale=(1.0, 1.0), color=False, image_width=None, test_width=None)


class Volumes(Segmentation):
    """Volumes and masks of a source, cross-entropy and soft Dice loss over voxels, Dice coefficient.

    The network is a U-Net of three dimensions. Volumes are not predicted, exported or drawn yet.

    Args:
        source, data, options: as :class:`.PairTask`.
    """

    name = kind = "volumes"
    purpose = "is for volumes"
    output = None
    predicts = False
    options = frozenset()
    score, score_label = "dice", "test Dice"

    @classmethod
    def open(
        cls, recipe: Recipe, source: str, *, held_out: HeldOut | None = None, known: Sequence[str] | None = None
    ) -> Source[Any]:
        cls.refuse_held_out(recipe)
        data = recipe.data
        kind, _, rest = source.partition(":")
        if kind != "volumes":
            raise UsageError(f'data.source (={source!r}) must be "volumes:N" for volumes')
        if data.channels != 1:
            raise UsageError(f"data.channels (={data.channels}) must be 1 for volumes")
        refuse_masks(recipe)
        train, test = volumes(rest)
        return Source(train, test, list(CLASSES))

    @classmethod
    def build_network(cls, recipe: Recipe, classes: Sequence[str]) -> nn.Module:
        if not recipe.model.is_unet:
            raise UsageError(f"model.name (={recipe.model.name}) must be a U-Net of volumes, such as nf_unet3d")
        return unet_of(recipe, classes, 3)

    @classmethod
    def train_transform(cls, data: DataConfig) -> Any:
        if data.crop not in ("random", "none"):
            raise UsageError(f"data.crop (={data.crop!r}) must be 'random' or 'none' for volumes")
        refuse_mixing(data, "volumes")
        refuse_fields(data, _OTHERS, "images")
        random: dict[str, Any] = dict(random=data.crop == "random", flip=data.flip)
        return VolumeTransform(_side(data.image_size), *image_statistics(data), **random)

    @classmethod
    def test_transform(cls, data: DataConfig) -> Any:
        return VolumeTransform(_side(data.test_size), *image_statistics(data))

    @classmethod
    def check_test(cls, source: Source[Any], data: DataConfig) -> None:
        """Made volumes have every class."""

    def check_targets(self, data: DataConfig) -> list[str]:
        return []

    @classmethod
    def metrics_of(cls, trained: Trained) -> "Dice":
        return Dice(len(trained.classes))

    @classmethod
    def measured(cls, metrics: Overlap, names: Sequence[str]) -> Measured:
        assert isinstance(metrics, Dice)
        scores = metrics.compute()
        rows = named_rows(names, "dice", metrics.dice_per_class())
        line = f"Dice {scores['dice']:.2%}   voxels {scores['voxel_accuracy']:.2%}   loss {scores['loss']:.4f}"
        return Measured([line], scores, rows)

    @classmethod
    def answers(cls, network: ReadyNetwork, options: PredictOptions) -> Answers:
        raise UsageError("networks for volumes have no `normfree predict`")

    @classmethod
    def gallery(cls, look: Look) -> Gallery:
        raise UsageError("networks for volumes have no pictures")

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean over volumes of their mean cross-entropy plus :func:`soft_dice_loss`; output (N, C, D, H, W)."""
        return super().loss(output, batch) + soft_dice_loss(output, batch.target_tensor).mean()

    def metrics(self) -> "Dice":
        return Dice(self.classes)


class Dice(Overlap):
    """The Dice coefficient ``2 |A and B| / (|A| + |B|)`` of each class, over all test voxels."""

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


def _side(size: int | None) -> int:
    if size is None:
        raise UsageError("data.image_size and data.test_size must be set")
    return size
