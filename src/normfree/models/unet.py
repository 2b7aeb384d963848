"""U-Nets of any dimension: the body, and the one without normalization.

A U-Net (Ronneberger et al. 2015, arXiv:1505.04597) halves the map from level to level, then doubles it again, and
concatenates on each level what the way down left there. Without normalization, both kinds of joint need a variance:
each residual block as in NF-ResNets (arXiv:2101.08692), and each concatenation, whose maps have different ones
(:func:`normfree.functional.concat_weights`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypedDict, Unpack

from torch import Tensor, nn

from ..errors import UsageError, check_count
from ..functional import expected_variances
from ..nn import (
    Activation,
    Role,
    ScaledConcat,
    WSConv1d,
    WSConv2d,
    WSConv3d,
    WSConvTranspose1d,
    WSConvTranspose2d,
    WSConvTranspose3d,
    activated,
)
from ..nn.pool import check_dims
from .block import Branch, NFBlock, Sampling
from .body import Stage, spelled_out

CONVS = {1: WSConv1d, 2: WSConv2d, 3: WSConv3d}
TRANSPOSED = {1: WSConvTranspose1d, 2: WSConvTranspose2d, 3: WSConvTranspose3d}
PLAIN: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_SIZES_2D: dict[str, Any] = dict(widths=(32, 64, 128, 256), depths=(1, 2, 2, 2), train_size=256, test_size=256)
_SIZES_3D: dict[str, Any] = dict(widths=(16, 32, 64), depths=(1, 1, 2), dims=3, train_size=32, test_size=32)
VARIANTS: dict[str, dict[str, Any]] = {"nf_unet": _SIZES_2D, "nf_unet3d": _SIZES_3D}


class UNetOptions(TypedDict, total=False):
    """Keyword arguments that every U-Net takes and passes on to :class:`UNet`."""

    num_classes: int
    in_chans: int
    dims: int
    drop_rate: float
    classifier_std: float


class Up(nn.Module):
    """One level of the way up: ``blocks(concat(up(act(x)), skip))``; (N, C, *places), (N, c, *larger) -> the latter.

    Args:
        up: doubles the map and makes the channels of ``skip``.
        concat: of what it makes and the skip.
    """

    def __init__(self, act: Activation, up: nn.Module, concat: nn.Module, blocks: nn.Sequential):
        super().__init__()
        self.act, self.up, self.concat, self.blocks = act, up, concat, blocks

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        (x,) = activated(self.act, x, self.up)
        return self.blocks(self.concat(as_large(x, skip), skip))


def as_large(x: Tensor, like: Tensor) -> Tensor:
    """``x`` without its last place on each axis that is longer than that of ``like``: an odd side was rounded up."""
    for axis in range(2, x.ndim):
        x = x.narrow(axis, 0, like.shape[axis]) if x.shape[axis] != like.shape[axis] else x
    return x


class UNet(nn.Module):
    """Stem, stages down, levels up, a classifier at each place: (N, in_chans, *places) -> (N, num_classes, *places).

    Args:
        stem: from the images to the first width, at full resolution.
        stages: of the way down; each but the first halves the map.
        ups: of the way up, the deepest first.
        final: the layers in front of the classifier.
        widths: channels of the stages.
        num_classes: 0: features of the first width.
        dims: axes of places, 1 to 3.
        drop_rate: dropout in front of the classifier.
        classifier_std: of the classifier's first weight.
    """

    parameter_roles = {"classifier.weight": Role.CLASSIFIER}
    family: str
    paper = ("arXiv:2101.08692", "arXiv:1505.04597")
    default_cfg: dict[str, Any]
    pretrained_cfg: dict[str, Any]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__init__" in vars(cls):
            vars(cls)["__init__"].__signature__ = spelled_out(cls)

    def __init__(
        self,
        *,
        stem: nn.Module,
        stages: Sequence[Stage],
        ups: Sequence[nn.Module],
        final: nn.Module,
        widths: Sequence[int],
        num_classes: int = 2,
        in_chans: int = 3,
        dims: int = 2,
        drop_rate: float = 0.0,
        classifier_std: float = 0.01,
    ):
        super().__init__()
        if not 0.0 <= drop_rate < 1.0:
            raise UsageError(f"drop_rate (={drop_rate}) must be at least 0 and below 1")
        self.dims, self.in_chans, self.num_classes, self.num_features = dims, in_chans, num_classes, widths[0]
        self.classifier_std = classifier_std
        self.stem, self.stages, self.ups = stem, nn.ModuleList(stages), nn.ModuleList(ups)
        self.final, self.dropout = final, nn.Dropout(drop_rate)
        self.classifier: nn.Module = nn.Identity()
        self.reset_classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """The map that the classifier takes: (N, widths[0], *places)."""
        x, skips = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        for up, skip in zip(self.ups, reversed(skips[:-1]), strict=True):
            x = up(x, skip)
        return self.final(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.forward_features(x)))

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a fresh one, N(0, classifier_std), bias 0; 0 classes: none."""
        like = next(self.stem.parameters())
        self.classifier, self.num_classes = nn.Identity(), num_classes
        if num_classes:
            check_count("num_classes", num_classes)
            layer = PLAIN[self.dims](self.num_features, num_classes, 1)
            nn.init.normal_(layer.weight, std=self.classifier_std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            self.classifier = layer.to(like)

    def named_blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """All residual blocks in their order, each with its name."""
        levels = [(f"stages.{i}", stage) for i, stage in enumerate(self.stages)]
        levels += [(f"ups.{i}.blocks", up.get_submodule("blocks")) for i, up in enumerate(self.ups)]
        for name, level in levels:
            for number, block in level.named_children():
                yield f"{name}.{number}", block

    def set_grad_checkpointing(self, enable: bool = True, stages: Sequence[int] | None = None) -> None:
        """Keep only block inputs for the backward pass; ``stages`` must be None: of all levels."""
        if stages is not None:
            raise UsageError(f"stages (={list(stages)}) must be None; a U-Net checkpoints all its levels or none")
        for module in self.modules():
            if isinstance(module, Stage):
                module.grad_checkpointing = enable


class NFUNet(UNet):
    """Normalizer-Free U-Net of one to three dimensions: (N, in_chans, *places) -> (N, num_classes, *places).

    Blocks are those of NF-ResNets, down and up. Each concatenation multiplies the map from below, which has variance 1,
    and the skip, whose blocks made it grow, with constants, so that the result has mean square 1 and both the same
    share of it; the first block behind it is a transition, whose variance starts again at 1. Odd sides are kept.

    Args:
        widths, depths: channels, and blocks of the way down, of each level.
        up_depth: blocks of each level of the way up.
        ratio, group_width, spatial_convs: of the blocks' branches, see :class:`.Branch`.
        squeeze_excite: a gate at the end of each branch.
        activation: a name or an elementwise callable.
        alpha, skip_gain, stochdepth_rate: as of the other Normalizer-Free families.
        skip_share: of the skip's mean square in each concatenation.
        options: of :class:`UNet`.

    Example:
        >>> model = NFUNet(widths=(8, 16), depths=(1, 1), dims=3, in_chans=1, num_classes=2)
        >>> model(torch.randn(1, 1, 8, 8, 7)).shape
        torch.Size([1, 2, 8, 8, 7])
    """

    family = "nf_unet"

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        up_depth: int = 1,
        ratio: float = 1.0,
        group_width: int | None = None,
        spatial_convs: int = 2,
        squeeze_excite: bool = False,
        activation: str | Callable[[Tensor], Tensor] = "relu",
        alpha: float = 0.2,
        skip_gain: float | None = 0.0,
        stochdepth_rate: float = 0.0,
        skip_share: float = 0.5,
        **options: Unpack[UNetOptions],
    ):
        dims, in_chans = options.get("dims", 2), options.get("in_chans", 3)
        check_levels(widths, depths, up_depth, dims)
        if not 0 < skip_share < 1:
            raise UsageError(f"skip_share (={skip_share}) must be above 0 and below 1")
        act, conv = Activation(activation), CONVS[dims]
        gate = "end" if squeeze_excite else None
        branch = Branch(
            ratio=ratio,
            group_width=group_width,
            spatial_convs=spatial_convs,
            squeeze_excite=gate,
            se_ratio=0.5,
            conv=conv,
        )
        count = sum(depths) + up_depth * (len(depths) - 1)
        made = iter(range(count))

        def level(channels: int, width: int, depth: int, stride: int, entering: float, restarts: bool) -> Stage:
            """Blocks, of which the first takes a signal of variance ``entering``."""
            variances, blocks = [entering, *(1 + alpha**2 * (1 + i) for i in range(depth - 1))], []
            for i, variance in enumerate(variances):
                block = NFBlock(
                    width if i else channels,
                    width,
                    branch=branch,
                    sampling=Sampling() if i else Sampling(stride),
                    alpha=alpha,
                    beta=math.sqrt(variance),
                    act=act.clone(),
                    skip_gain=skip_gain,
                    stochdepth_rate=stochdepth_rate * next(made) / count,
                )
                block.restarts = restarts and not i
                blocks.append(block)
            return Stage(*blocks)

        first = expected_variances(depths, alpha)
        leaving = [1 + alpha**2 * depth for depth in depths]  # of each level of the way down
        stages = []
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            stages.append(level(widths[max(i - 1, 0)], width, depth, 2 if i else 1, first[i][0], False))
        ups, below = [], leaving[-1]
        for i in reversed(range(len(widths) - 1)):
            up = TRANSPOSED[dims](widths[i + 1], widths[i], 2, 2, input_scale=act.gamma / math.sqrt(below))
            shares = (1 - skip_share, skip_share)
            concat = ScaledConcat((widths[i], widths[i]), (1.0, leaving[i]), shares)
            blocks = level(2 * widths[i], widths[i], up_depth, 1, 1.0, True)
            ups.append(Up(act.clone(), up, concat, blocks))
            below = 1 + alpha**2 * up_depth
        stem = conv(in_chans, widths[0], 3)
        super().__init__(stem=stem, stages=stages, ups=ups, final=ScaledEnd(act, below), widths=widths, **options)
        self.leaving, self.alpha, self.up_depth = tuple(leaving), alpha, up_depth

    def expected(self) -> dict[str, float]:
        """The variance that theory gives each part's output at initialization with skip gains of 1, by name."""
        variances = {"stem": 1.0} | {f"stages.{i}": variance for i, variance in enumerate(self.leaving)}
        for i in range(len(self.ups)):
            variances |= {f"ups.{i}.up": 1.0, f"ups.{i}.concat": 1.0, f"ups.{i}": 1 + self.alpha**2 * self.up_depth}
        return variances


class ScaledEnd(nn.Module):
    """``gamma * act(x) / std``, of a signal of a given variance: the same shape."""

    def __init__(self, act: Activation, variance: float):
        super().__init__()
        self.act, self.scale = act, act.gamma / math.sqrt(variance)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x) * self.scale


def check_levels(widths: Sequence[int], depths: Sequence[int], up_depth: int, dims: int) -> None:
    """Refuse numbers of a U-Net that do not fit together; raises UsageError."""
    check_dims(dims)
    check_count("up_depth", up_depth)
    if len(widths) != len(depths) or len(widths) < 2:
        raise UsageError(f"widths (={list(widths)}) and depths (={list(depths)}) must be as many, at least 2")
    for name, values in dict(widths=widths, depths=depths).items():
        for value in values:
            check_count(name, value)
