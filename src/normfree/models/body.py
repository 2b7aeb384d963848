"""The body all families share: stem, stages of blocks, final convolution, classifier; with timm's model interface."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import UsageError
from ..functional import expected_variances
from ..nn import Activation, Role, parameter_roles
from .block import Branch, NFBlock


class ClassifierHead(nn.Module):
    """Average pool, dropout, linear: (N, C, H, W) -> (N, num_classes); (N, C) if ``num_classes`` is 0.

    With ``global_pool=""`` the map is not pooled, which needs ``num_classes=0``.
    """

    parameter_roles = {"fc.weight": Role.CLASSIFIER}

    def __init__(
        self, in_features: int, num_classes: int, drop_rate: float, init_std: float = 0.01, global_pool: str = "avg"
    ):
        super().__init__()
        if not 0.0 <= drop_rate < 1.0:
            raise UsageError(f"drop_rate (={drop_rate}) must be at least 0 and below 1")
        self.in_features, self.init_std = in_features, init_std
        self.dropout = nn.Dropout(drop_rate)
        self.reset(num_classes, global_pool)

    def reset(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier with fresh weights: N(0, init_std), bias 0."""
        global_pool = self.global_pool if global_pool is None else global_pool
        if global_pool not in ("avg", ""):
            raise UsageError(f'global_pool (={global_pool!r}) must be "avg" or "" (no pooling)')
        if num_classes < 0 or (num_classes and not global_pool):
            raise UsageError(f"num_classes (={num_classes}) must be at least 0, and 0 without pooling")
        self.global_pool = global_pool
        self.fc = nn.Identity()
        if num_classes:
            self.fc = nn.Linear(self.in_features, num_classes)
            nn.init.normal_(self.fc.weight, std=self.init_std)
            nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if self.global_pool:
            x = x.mean((2, 3))
        x = self.dropout(x)
        return x if pre_logits else self.fc(x)


class Stage(nn.Sequential):
    """Blocks of one width and resolution; with ``grad_checkpointing`` only their inputs are kept for backward."""

    grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        if not (self.grad_checkpointing and torch.is_grad_enabled()):
            return super().forward(x)
        for block in self:
            x = checkpoint(block, x, use_reentrant=False)
        return x


class ResidualNet(nn.Module):
    """Stem, stages of residual blocks, classifier, with timm's model interface; the body of every network here.

    A class defines ``forward_features``, which ends where the classifier's pooling begins.

    Args:
        stem: module from images to ``stem_channels`` maps; ``stem_stride`` is its total stride.
        widths, depths, strides: output channels, number of blocks and first block's stride of each stage.
        make_block: ``make_block(stage, position, in_channels, out_channels, stride)`` is the block ``position`` of a
            stage.
        final: modules behind the last stage, by name; their parameters come before the classifier's.
        num_features: channels of what ``forward_features`` returns.
        drop_rate: dropout in front of the classifier.
        classifier_std: standard deviation of the classifier's initial weight.
    """

    family: str  # names the architecture in checkpoints and in the maps of ``normfree.weights``

    def __init__(
        self,
        *,
        stem: nn.Module,
        stem_channels: int,
        stem_stride: int,
        widths: Sequence[int],
        depths: Sequence[int],
        strides: Sequence[int],
        make_block: Callable[[int, int, int, int, int], nn.Module],
        final: Mapping[str, nn.Module] | None = None,
        num_features: int,
        num_classes: int = 1000,
        drop_rate: float = 0.0,
        classifier_std: float = 0.01,
        global_pool: str = "avg",
    ):
        super().__init__()
        _check_stages(widths, depths, strides)
        self.num_classes = num_classes
        self.stem = stem
        self.feature_info: list[dict[str, Any]] = []
        stages, channels, reduction = [], stem_channels, stem_stride
        for number, (width, depth, stride) in enumerate(zip(widths, depths, strides, strict=True)):
            blocks = [make_block(number, 0, channels, width, stride)]
            blocks += [make_block(number, position, width, width, 1) for position in range(1, depth)]
            stages.append(Stage(*blocks))
            channels, reduction = width, reduction * stride
            self.feature_info.append(dict(num_chs=channels, reduction=reduction, module=f"stages.{number}"))
        self.stages = nn.Sequential(*stages)
        for name, module in (final or {}).items():
            self.add_module(name, module)
        self.num_features = self.head_hidden_size = num_features
        self.head = ClassifierHead(num_features, num_classes, drop_rate, classifier_std, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, activated: (N, num_features, H', W')."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of a map from :meth:`forward_features`, or with ``pre_logits`` what the classifier would see."""
        return self.head(x, pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one; 0 classes: none, the network returns pooled features."""
        self.head.reset(num_classes, global_pool)
        self.head.to(next(self.stem.parameters()))  # device and type of the network
        self.num_classes = num_classes

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only block inputs for the backward pass and compute each block once more there."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are not decayed: gains, biases, skip gains."""
        decayed = (Role.WEIGHT, Role.CLASSIFIER)
        return {name for name, role in parameter_roles(self).items() if role not in decayed}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that group parameters by depth, for layer-wise learning rates."""
        blocks = r"^stages\.(\d+)" if coarse else [(r"^stages\.(\d+)\.(\d+)", None), (r"^final_", (99999,))]
        return dict(stem=r"^stem", blocks=blocks)


class NormFreeNet(ResidualNet):
    """Normalizer-Free network: (N, in_chans, H, W) -> (N, num_classes).

    A family passes its ``stem`` (whose output has variance 1 at initialization), its ``branch`` and its numbers.

    Args:
        stem, stem_channels, stem_stride, widths, depths, strides, drop_rate, classifier_std: as :class:`ResidualNet`.
        first_ratio: the first block's branch ratio, where it differs.
        final_channels: outputs of the 1x1 convolution behind the last stage; None: there is none.
        skip_gain: initial value of the skip gains; None: there are none.
        stochdepth_rate: block i of n is dropped with probability ``stochdepth_rate * i / n``.
    """

    def __init__(
        self,
        *,
        stem: nn.Module,
        stem_channels: int,
        stem_stride: int,
        widths: Sequence[int],
        depths: Sequence[int],
        strides: Sequence[int],
        branch: Branch,
        first_ratio: float | None = None,
        final_channels: int | None = None,
        act: Activation,
        alpha: float = 0.2,
        skip_gain: float | None = 0.0,
        num_classes: int = 1000,
        drop_rate: float = 0.0,
        stochdepth_rate: float = 0.0,
        classifier_std: float = 0.01,
        global_pool: str = "avg",
    ):
        _check_stages(widths, depths, strides)
        variances = expected_variances(depths, alpha)

        def make_block(stage: int, position: int, in_channels: int, out_channels: int, stride: int) -> NFBlock:
            index = sum(depths[:stage]) + position
            return NFBlock(
                in_channels,
                out_channels,
                branch=branch if index or first_ratio is None else replace(branch, ratio=first_ratio),
                stride=stride,
                alpha=alpha,
                beta=math.sqrt(variances[stage][position]),
                act=act,
                skip_gain=skip_gain,
                stochdepth_rate=stochdepth_rate * index / sum(depths),
            )

        super().__init__(
            stem=stem,
            stem_channels=stem_channels,
            stem_stride=stem_stride,
            widths=widths,
            depths=depths,
            strides=strides,
            make_block=make_block,
            final=dict(final_conv=branch.conv(widths[-1], final_channels, 1) if final_channels else nn.Identity()),
            num_features=final_channels or widths[-1],
            num_classes=num_classes,
            drop_rate=drop_rate,
            classifier_std=classifier_std,
            global_pool=global_pool,
        )
        self.alpha = alpha
        self.act, self.feature_gamma = act, act.gamma

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, activated and scaled: (N, num_features, H', W')."""
        x = self.final_conv(self.stages(self.stem(x)))
        x = self.act(x)
        return x if self.feature_gamma == 1.0 else x * self.feature_gamma


def _check_stages(widths: Sequence[int], depths: Sequence[int], strides: Sequence[int]) -> None:
    if not len(widths) == len(depths) == len(strides):
        raise UsageError(f"widths {widths}, depths {depths} and strides {strides} must have one length")
    if min(*depths, *widths) < 1:
        raise UsageError(f"widths {widths} and depths {depths} must be at least 1")
