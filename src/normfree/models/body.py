"""The body all families share: stem, stages of blocks, final convolution, classifier; with timm's model interface."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, Unpack, get_args, get_type_hints

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import UsageError
from ..nn import Activation, ChannelAffine, Role, SameConv2d, StochdepthScaling, parameter_roles
from .block import Branch, NFBlock, Sampling
from .constant_variance import Residual, block_of, block_variances
from .features import FeatureMaps, stem_feature, stem_maps
from .head import ClassifierHead, Expansion

Final = Literal["conv", "linear", "none"]


class Stage(nn.Sequential):
    """Blocks of one width and resolution; with ``grad_checkpointing`` only their inputs are kept for backward."""

    grad_checkpointing = False

    def forward(self, input: Tensor) -> Tensor:
        if not (self.grad_checkpointing and torch.is_grad_enabled()):
            return super().forward(input)
        x = input
        for block in self:
            x = checkpoint(block, x, use_reentrant=False)
        return x


class NetOptions(TypedDict, total=False):
    """Keyword arguments that every network takes and passes on to :class:`ResidualNet`."""

    num_classes: int
    global_pool: str
    output_stride: int


class RegularizedOptions(NetOptions, total=False):
    """The same with the regularization, for families without their own defaults."""

    drop_rate: float
    stochdepth_rate: float


class NormFreeOptions(NetOptions, total=False):
    """Keyword arguments that every Normalizer-Free family takes and passes on to :class:`NormFreeNet`."""

    alpha: float
    skip_gain: float | None
    stochdepth_scaling: StochdepthScaling


@dataclass(frozen=True)
class Place:
    """A block's place in a network, and what follows from it.

    Attributes:
        stage, position: of the block in its stage; ``index``: among all blocks of the network; all counted from 0.
        stochdepth_rate: probability with which stochastic depth drops the block's branch.
    """

    stage: int
    position: int
    index: int
    in_channels: int
    out_channels: int
    sampling: Sampling
    stochdepth_rate: float


def spelled_out(cls: type) -> inspect.Signature:
    """A constructor's signature with its ``**options`` replaced by the parameters of the base class."""
    signature = inspect.signature(cls.__init__)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    options = next((p.annotation for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), None)
    if options is None:
        return signature
    base = inspect.signature(cls.__mro__[1].__init__).parameters
    (declared,) = get_args(options)  # of Unpack
    inherited = [base[name].replace(annotation=hint) for name, hint in get_type_hints(declared).items()]
    return signature.replace(parameters=[*own, *inherited])


class ResidualNet(FeatureMaps):
    """Stem, stages of residual blocks, classifier, with timm's model interface; the body of every network here.

    A class defines ``forward_final``, the layers between the last stage's map and the classifier's pooling. Its
    constructor may end in ``**options: Unpack[...]`` of a TypedDict above; ``inspect.signature`` lists each of these
    options with the base class's default.

    Args:
        stem: layers between the images and the first stage; ``out_channels`` and ``stride`` are read from them.
        widths, depths, strides: output channels, number of blocks and first block's stride of each stage.
        make_block: the block of a :class:`Place`.
        final_conv: the convolution behind the last stage; None: there is none.
        expansion: the layer between pooling and classifier; None: there is none.
        final: further modules behind the last stage, by name; their parameters come before the classifier's.
        drop_rate: dropout in front of the classifier.
        stochdepth_rate: block i of n is dropped with probability ``stochdepth_rate * i / n``.
        classifier_std: standard deviation of the classifier's initial weight.
        output_stride: 8, 16 or 32; beyond it, stages are dilated instead of strided.
        mapped: numbers of the stages, the last one among them, whose maps ``feature_info`` lists; None: all.
    """

    family: str  # names the architecture in checkpoints and in the maps of ``normfree.weights``
    paper = ("arXiv:2101.08692", "arXiv:2102.06171")
    default_cfg: dict[str, Any]
    pretrained_cfg: dict[str, Any]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__init__" in vars(cls):
            vars(cls)["__init__"].__signature__ = spelled_out(cls)

    def __init__(
        self,
        *,
        stem: nn.Sequential,
        widths: Sequence[int],
        depths: Sequence[int],
        strides: Sequence[int],
        make_block: Callable[[Place], nn.Module],
        final_conv: SameConv2d | None = None,
        final: Mapping[str, nn.Module] | None = None,
        expansion: Expansion | None = None,
        num_classes: int = 1000,
        drop_rate: float = 0.0,
        stochdepth_rate: float = 0.0,
        classifier_std: float = 0.01,
        global_pool: str = "avg",
        output_stride: int = 32,
        mapped: Sequence[int] | None = None,
    ):
        super().__init__()
        _check_stages(widths, depths, strides)
        if output_stride not in (8, 16, 32):
            raise UsageError(f"output_stride (={output_stride}) must be 8, 16 or 32")
        self.num_classes = num_classes
        self.stem = stem
        self.feature_info, self.map_stages = [stem_feature(stem)], [0]
        last = stem_maps(stem)[-1]
        stages, channels, reduction, dilation, index = [], last["num_chs"], last["reduction"], 1, 0
        for number, (width, depth, stride) in enumerate(zip(widths, depths, strides, strict=True)):
            atrous = stride if reduction * stride > output_stride else 1
            sampling = Sampling(stride // atrous, dilation, atrous)
            reduction, dilation = reduction * sampling.stride, dilation * atrous
            blocks = []
            for position in range(depth):
                rate = stochdepth_rate * index / sum(depths)
                blocks.append(make_block(Place(number, position, index, channels, width, sampling, rate)))
                channels, sampling, index = width, Sampling(dilation=dilation), index + 1
            stages.append(Stage(*blocks))
            if mapped is None or number in mapped:
                self.feature_info.append(dict(num_chs=channels, reduction=reduction, module=f"stages.{number}"))
                self.map_stages.append(number + 1)
        self.stages = nn.Sequential(*stages)
        self.final_conv = nn.Identity() if final_conv is None else final_conv
        if final_conv is not None:
            channels = final_conv.out_channels
            self.feature_info[-1] |= dict(num_chs=channels, module="final_conv")
        self.final_names = tuple(final or {})
        for name, module in (final or {}).items():
            self.add_module(name, module)
        self.num_features = channels
        self.head = ClassifierHead(channels, num_classes, drop_rate, classifier_std, global_pool, expansion)
        self.head_hidden_size = self.head.hidden_size

    @classmethod
    def map_count(cls, stages: int) -> int:
        """Number of maps in ``feature_info`` of a network of so many stages."""
        return stages + 1

    def map_variances(self) -> list[float]:
        """The variance that theory gives each map of ``feature_info`` at initialization; 1 without a theory."""
        return [1.0] * len(self.feature_info)

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        return self._first_layer()[1]

    @property
    def first_conv(self) -> str:
        """Name of the convolution that sees the images."""
        return self._first_layer()[0]

    def _first_layer(self) -> tuple[str, int]:
        """Name of the convolution that sees the images, and how many channels it takes."""
        layers = ((name, getattr(module, "in_channels", None)) for name, module in self.stem.named_modules())
        return next((f"stem.{name}", channels) for name, channels in layers if channels is not None)

    def named_blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """All residual blocks in their order, each with its name."""
        for number, stage in enumerate(self.stages.children()):
            for name, block in stage.named_children():
                yield f"stages.{number}.{name}", block

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, as the classifier pools it: (N, num_features, H', W')."""
        return self.forward_final(self.final_conv(self.stages(self.stem(x))))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of a map from :meth:`forward_features`, or with ``pre_logits`` the classifier's input."""
        return self.head(x, pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one; 0 classes: none, the network returns pooled features."""
        self.head.reset(num_classes, global_pool)
        self.head_hidden_size = self.head.hidden_size
        self.head.to(next(self.stem.parameters())).train(self.training)  # device, type and mode of the network
        self.num_classes = num_classes

    def set_grad_checkpointing(self, enable: bool = True, stages: Sequence[int] | None = None) -> None:
        """Keep only block inputs for the backward pass and compute each block once more there.

        Args:
            stages: numbers of the stages; None: all.

        Raises:
            UsageError: a stage that the network does not have.
        """
        for number in stages or ():
            if not 0 <= number < len(self.stages):
                raise UsageError(f"stage {number} is not there; the network has stages 0 to {len(self.stages) - 1}")
        for number, stage in enumerate(self.stages):
            if isinstance(stage, Stage):
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
        stem, widths, depths, strides, classifier_std: as :class:`ResidualNet`.
        branch: of all blocks, or one for each stage.
        first_ratio: the branch ratio of the network's first block, if it differs.
        final: what widens the features in front of the classifier: a 1x1 convolution behind the last stage ("conv"), a
            linear layer behind the pooling ("linear"), or nothing ("none").
        final_channels: how many features it makes; None: there is none.
        skip_gain: initial value of the skip gains; None: there are none.
        stochdepth_scaling: as :class:`.StochasticDepth`.
        residual: the sum of shortcut and branch, "growing-variance" or "constant-variance", see
            :class:`.ConstantVarianceBlock`.
    """

    act: nn.Module
    final_affine: nn.Module
    residual: Residual

    def __init__(
        self,
        *,
        stem: nn.Sequential,
        widths: Sequence[int],
        depths: Sequence[int],
        strides: Sequence[int],
        branch: Branch | Sequence[Branch],
        first_ratio: float | None = None,
        final: Final = "conv",
        final_channels: int | None = None,
        act: Activation,
        alpha: float = 0.2,
        skip_gain: float | None = 0.0,
        stochdepth_scaling: StochdepthScaling = "none",
        residual: Residual = "growing-variance",
        classifier_std: float = 0.01,
        **options: Unpack[RegularizedOptions],
    ):
        _check_stages(widths, depths, strides)
        if residual == "constant-variance" and stochdepth_scaling == "skip":
            raise UsageError(
                f'stochdepth_scaling (={stochdepth_scaling!r}) must be "none" or "branch" with residual={residual!r}, '
                "whose variance does not grow"
            )
        block, variances = block_of(residual), block_variances(depths, alpha, residual)
        branches = [branch] * len(widths) if isinstance(branch, Branch) else branch

        def make_block(place: Place) -> NFBlock:
            own = branches[place.stage]
            return block(
                place.in_channels,
                place.out_channels,
                branch=own if place.index or first_ratio is None else replace(own, ratio=first_ratio),
                sampling=place.sampling,
                alpha=alpha,
                beta=math.sqrt(variances[place.stage][place.position]),
                act=act.clone(),  # a copy for each block: a trace names a shared module by its first place
                skip_gain=skip_gain,
                stochdepth_rate=place.stochdepth_rate,
                stochdepth_scaling=stochdepth_scaling,
            )

        last, wider = branches[-1], (final_channels if final != "none" else None)
        final_conv = last.conv(widths[-1], wider, 1) if wider and final == "conv" else None
        channels = widths[-1] if final_conv is None else final_conv.out_channels
        super().__init__(
            stem=stem,
            widths=widths,
            depths=depths,
            strides=strides,
            make_block=make_block,
            final_conv=final_conv,
            final=dict(final_affine=ChannelAffine(channels), act=act) if last.affine else dict(act=act),
            expansion=Expansion(widths[-1], wider, act.clone()) if wider and final == "linear" else None,
            classifier_std=classifier_std,
            **options,
        )
        self.alpha, self.residual = alpha, residual
        self.feature_gamma = act.gamma

    def map_variances(self) -> list[float]:
        """As in :class:`ResidualNet`; behind a final convolution it is 1."""
        depths = [len(list(stage.children())) + 1 for stage in self.stages]  # the last entry: the block that follows
        variances = [1.0, *(stage[-1] for stage in block_variances(depths, self.alpha, self.residual))]
        if not isinstance(self.final_conv, nn.Identity):
            variances[-1] = 1.0
        return variances

    def forward_final(self, x: Tensor) -> Tensor:
        """Activation and its gamma, perhaps behind an affine transform."""
        x = self.act(self.final_affine(x) if "final_affine" in self.final_names else x)
        return x if self.feature_gamma == 1.0 else x * self.feature_gamma


def _check_stages(widths: Sequence[int], depths: Sequence[int], strides: Sequence[int]) -> None:
    if not len(widths) == len(depths) == len(strides):
        raise UsageError(f"widths {widths}, depths {depths} and strides {strides} must have one length")
    if min(*depths, *widths) < 1:
        raise UsageError(f"widths {widths} and depths {depths} must be at least 1")
