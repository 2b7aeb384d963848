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
from .block import Branch, NFBlock, Sampling
from .features import FeatureMaps, stem_feature
from .head import ClassifierHead


class Stage(nn.Sequential):
    """Blocks of one width and resolution; with ``grad_checkpointing`` only their inputs are kept for backward."""

    grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        if not (self.grad_checkpointing and torch.is_grad_enabled()):
            return super().forward(x)
        for block in self:
            x = checkpoint(block, x, use_reentrant=False)
        return x


class ResidualNet(FeatureMaps):
    """Stem, stages of residual blocks, classifier, with timm's model interface; the body of every network here.

    A class defines ``forward_final``, what stands between the last stage's map and the classifier's pooling.

    Args:
        stem: layers from images to ``stem_channels`` maps; ``stem_stride`` is their total stride.
        widths, depths, strides: output channels, number of blocks and first block's stride of each stage.
        make_block: ``make_block(stage, position, in_channels, out_channels, sampling)`` is the block ``position`` of
            a stage.
        final_conv: the convolution behind the last stage; None: there is none.
        final: further modules behind the last stage, by name; their parameters come before the classifier's.
        num_features: channels of what ``forward_features`` returns.
        drop_rate: dropout in front of the classifier.
        classifier_std: standard deviation of the classifier's initial weight.
        output_stride: 8, 16 or 32; from there on stages dilate instead of striding.
    """

    family: str  # names the architecture in checkpoints and in the maps of ``normfree.weights``
    paper = ("arXiv:2101.08692", "arXiv:2102.06171")

    def __init__(
        self,
        *,
        stem: nn.Sequential,
        stem_channels: int,
        stem_stride: int,
        widths: Sequence[int],
        depths: Sequence[int],
        strides: Sequence[int],
        make_block: Callable[[int, int, int, int, Sampling], nn.Module],
        final_conv: nn.Module | None = None,
        final: Mapping[str, nn.Module] | None = None,
        num_features: int,
        num_classes: int = 1000,
        drop_rate: float = 0.0,
        classifier_std: float = 0.01,
        global_pool: str = "avg",
        output_stride: int = 32,
    ):
        super().__init__()
        _check_stages(widths, depths, strides)
        if output_stride not in (8, 16, 32):
            raise UsageError(f"output_stride (={output_stride}) must be 8, 16 or 32")
        self.num_classes = num_classes
        self.stem = stem
        self.feature_info: list[dict[str, Any]] = [stem_feature(stem)]
        stages, channels, reduction, dilation = [], stem_channels, stem_stride, 1
        for number, (width, depth, stride) in enumerate(zip(widths, depths, strides, strict=True)):
            atrous = stride if reduction * stride > output_stride else 1
            first = Sampling(stride // atrous, dilation, atrous)
            reduction, dilation = reduction * first.stride, dilation * atrous
            blocks = [make_block(number, 0, channels, width, first)]
            blocks += [make_block(number, i, width, width, Sampling(dilation=dilation)) for i in range(1, depth)]
            stages.append(Stage(*blocks))
            channels = width
            self.feature_info.append(dict(num_chs=channels, reduction=reduction, module=f"stages.{number}"))
        self.stages = nn.Sequential(*stages)
        self.final_conv = nn.Identity() if final_conv is None else final_conv
        if final_conv is not None:
            self.feature_info[-1] |= dict(num_chs=final_conv.out_channels, module="final_conv")
        self.final_names = tuple(final or {})
        for name, module in (final or {}).items():
            self.add_module(name, module)
        self.num_features = self.head_hidden_size = num_features
        self.head = ClassifierHead(num_features, num_classes, drop_rate, classifier_std, global_pool)

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        return self.get_submodule(self.first_conv).in_channels

    @property
    def first_conv(self) -> str:
        """Name of the convolution that sees the images."""
        return next(f"stem.{name}" for name, module in self.stem.named_modules() if hasattr(module, "in_channels"))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, as the classifier pools it: (N, num_features, H', W')."""
        return self.forward_final(self.final_conv(self.stages(self.stem(x))))

    def forward_final(self, x: Tensor) -> Tensor:
        """What normalizes and activates the last map of ``feature_info``; the map itself where nothing does."""
        return x

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
        self.head.to(next(self.stem.parameters())).train(self.training)  # device, type and mode of the network
        self.num_classes = num_classes

    def set_grad_checkpointing(self, enable: bool = True, stages: Sequence[int] | None = None) -> None:
        """Keep only block inputs for the backward pass and compute each block once more there.

        Args:
            stages: numbers of the stages that do; None: all.

        Raises:
            UsageError: a stage that is not there.
        """
        for number in stages or ():
            if not 0 <= number < len(self.stages):
                raise UsageError(f"stage {number} is not there; the network has stages 0 to {len(self.stages) - 1}")
        for number, stage in enumerate(self.stages):
            stage.grad_checkpointing = enable and (stages is None or number in stages)

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
        stem: nn.Sequential,
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
        output_stride: int = 32,
    ):
        _check_stages(widths, depths, strides)
        variances = expected_variances(depths, alpha)

        def make_block(stage: int, position: int, in_channels: int, out_channels: int, sampling: Sampling) -> NFBlock:
            index = sum(depths[:stage]) + position
            return NFBlock(
                in_channels,
                out_channels,
                branch=branch if index or first_ratio is None else replace(branch, ratio=first_ratio),
                sampling=sampling,
                alpha=alpha,
                beta=math.sqrt(variances[stage][position]),
                act=Activation(act.activation, act.gamma),  # its own: a trace names what is called by its first place
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
            final_conv=branch.conv(widths[-1], final_channels, 1) if final_channels else None,
            final=dict(act=act),
            num_features=final_channels or widths[-1],
            num_classes=num_classes,
            drop_rate=drop_rate,
            classifier_std=classifier_std,
            global_pool=global_pool,
            output_stride=output_stride,
        )
        self.alpha = alpha
        self.feature_gamma = act.gamma

    def forward_final(self, x: Tensor) -> Tensor:
        """Activation and its gamma."""
        x = self.act(x)
        return x if self.feature_gamma == 1.0 else x * self.feature_gamma


def _check_stages(widths: Sequence[int], depths: Sequence[int], strides: Sequence[int]) -> None:
    if not len(widths) == len(depths) == len(strides):
        raise UsageError(f"widths {widths}, depths {depths} and strides {strides} must have one length")
    if min(*depths, *widths) < 1:
        raise UsageError(f"widths {widths} and depths {depths} must be at least 1")
