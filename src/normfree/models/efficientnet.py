"""The shape of EfficientNets, with and without normalization (Tan & Le 2019, arXiv:1905.11946).

Stages of inverted bottlenecks: a 1x1 convolution expands, a depthwise one of 3x3 or 5x5 follows, then Squeeze-Excite,
then a 1x1 convolution without activation. All networks are B0 with other numbers of channels, blocks and pixels.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from torch import nn

from ..nn import Activation, SameConv2d, SqueezeExcite, StochasticDepth
from .block import Sampling, divisible
from .body import Place, RegularizedOptions, ResidualNet
from .stem import RegNetStem, conv_stem

EXPANSIONS, KERNEL_SIZES, STRIDES = (1, 6, 6, 6, 6, 6, 6), (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1)  # of the stages
WIDTHS, DEPTHS, STEM_WIDTH = (16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1), 32  # of B0
FINAL_FACTOR = 4  # channels of the last convolution over those of the last stage
_DIVISOR = 8  # of all numbers of channels
_SCALING = (  # width and depth over B0's, pixels, dropout
    (1.0, 1.0, 224, 0.2),
    (1.0, 1.1, 240, 0.2),
    (1.1, 1.2, 260, 0.3),
    (1.2, 1.4, 300, 0.3),
    (1.4, 1.8, 380, 0.4),
    (1.6, 2.2, 456, 0.4),
    (1.8, 2.6, 528, 0.5),
    (2.0, 3.1, 600, 0.5),
)


def efficientnet_variants(prefix: str, count: int, stochdepth_rate: float) -> dict[str, dict[str, Any]]:
    """The variants B0, B1, ... of a family, ``count`` of them; they are trained and tested at one size."""
    return {
        f"{prefix}_b{level}": dict(
            widths=tuple(divisible(width * channels, _DIVISOR) for channels in WIDTHS),
            depths=tuple(math.ceil(depth * blocks) for blocks in DEPTHS),
            stem_width=divisible(width * STEM_WIDTH, _DIVISOR),
            drop_rate=drop_rate,
            stochdepth_rate=stochdepth_rate,
            train_size=size,
            test_size=size,
        )
        for level, (width, depth, size, drop_rate) in enumerate(_SCALING[:count])
    }


def skip_flags(stem_width: int, widths: Sequence[int], depths: Sequence[int]) -> list[bool]:
    """Whether each block of a network has a skip: where stride or channels change, there is none.

    Example:
        >>> skip_flags(32, widths=(16, 24, 24), depths=(2, 1, 1))  # the third stage has stride 2
        [False, True, False, False]
    """
    inputs = (stem_width, *widths)
    stages = zip(STRIDES, inputs, widths, depths, strict=False)  # the body compares their lengths
    return [
        position > 0 or (stride == 1 and before == width)
        for stride, before, width, depth in stages
        for position in range(depth)
    ]


@dataclass(frozen=True)
class Inverted:
    """The shape of an inverted bottleneck.

    Attributes:
        expansion: inner width over the block's input channels.
        kernel_size: of the depthwise convolution.
        se_ratio: hidden width of Squeeze-Excite over the block's input channels, not over those that it sees.
    """

    in_channels: int
    out_channels: int
    expansion: int = 6
    kernel_size: int = 3
    sampling: Sampling = Sampling()  # noqa: RUF009 - immutable
    se_ratio: float = 0.25

    @property
    def width(self) -> int:
        """Channels of the depthwise convolution."""
        return self.in_channels * self.expansion

    @property
    def hidden(self) -> int:
        """Hidden width of Squeeze-Excite."""
        return max(1, int(self.in_channels * self.se_ratio))

    @property
    def has_skip(self) -> bool:
        """Whether the input is added to the output, which then has its shape."""
        return not self.sampling.reduces and self.in_channels == self.out_channels


class InvertedBlock(nn.Module):
    """What the inverted bottlenecks with and without normalization have in common; they define ``forward``.

    ``(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))``. Where nothing is to be expanded
    there is no first 1x1 convolution. Squeeze-Excite has the block's activation inside, as in EfficientNet.

    Args:
        conv: makes the convolutions; ``depthwise``: the depthwise one.
        beta: the input is divided by it, folded into the first convolution, as gamma of ``act`` into the others.
    """

    def __init__(
        self,
        shape: Inverted,
        *,
        conv: Callable[..., SameConv2d],
        depthwise: Callable[..., SameConv2d],
        act: Activation,
        beta: float = 1.0,
        se_factor: float,
        stochdepth: StochasticDepth,
    ):
        super().__init__()
        self.in_channels, self.out_channels, self.has_skip = shape.in_channels, shape.out_channels, shape.has_skip
        self.beta, width = beta, shape.width
        self.act = act
        scale = 1 / beta
        self.conv0 = None
        if shape.expansion > 1:
            self.conv0, scale = conv(shape.in_channels, width, 1, input_scale=scale), act.gamma
        self.conv1 = depthwise(width, width, shape.kernel_size, groups=width, input_scale=scale, **shape.sampling.first)
        self.squeeze_excite = SqueezeExcite(width, hidden=shape.hidden, factor=se_factor, activation=act.activation)
        self.conv2 = conv(width, shape.out_channels, 1, input_scale=act.gamma)
        self.stochdepth = stochdepth


class EfficientNetOptions(RegularizedOptions, total=False):
    """Keyword arguments that both families take and pass on to :class:`EfficientNet`."""

    stem: RegNetStem
    in_chans: int
    se_ratio: float


class EfficientNet(ResidualNet):
    """The body of both families: (N, in_chans, H, W) -> (N, num_classes).

    Five maps are listed in ``feature_info``: the stem's, and that of the last stage of each further stride.

    Args:
        widths, depths: channels and blocks of each stage, at most seven.
        conv: makes the stem's convolution.
        behind_stem: layers behind it, by name.
        make_block: the block of a shape at a place.
        final_conv: the 1x1 convolution behind the last stage.
        stem: "3x3-stride2" is the paper's; "3x3" of stride 1 is for images of about 32 px.
        stem_width: channels of the stem.
        options: as :class:`ResidualNet`.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        conv: Callable[..., SameConv2d],
        behind_stem: Mapping[str, nn.Module],
        make_block: Callable[[Inverted, Place], InvertedBlock],
        final_conv: SameConv2d,
        final: Mapping[str, nn.Module],
        stem: RegNetStem = "3x3-stride2",
        stem_width: int = STEM_WIDTH,
        in_chans: int = 3,
        se_ratio: float = 0.25,
        classifier_std: float = 0.01,
        **options: Unpack[RegularizedOptions],
    ):
        def block_at(place: Place) -> InvertedBlock:
            expansion, kernel_size = EXPANSIONS[place.stage], KERNEL_SIZES[place.stage]
            channels = place.in_channels, place.out_channels
            return make_block(Inverted(*channels, expansion, kernel_size, place.sampling, se_ratio), place)

        super().__init__(
            stem=conv_stem(stem, conv, in_chans, stem_width, **behind_stem),
            widths=widths,
            depths=depths,
            strides=STRIDES[: len(widths)],
            make_block=block_at,
            final_conv=final_conv,
            final=final,
            classifier_std=classifier_std,
            mapped=self.mapped_stages(len(widths)),
            **options,
        )

    @staticmethod
    def mapped_stages(count: int) -> list[int]:
        """Of ``count`` stages, the numbers of those that are the last of their stride; the first has the stem's."""
        return [n for n in range(count) if n + 1 == count or (n > 0 and STRIDES[n + 1 : n + 2] == (2,))]

    @classmethod
    def map_count(cls, stages: int) -> int:
        """As in :class:`ResidualNet`."""
        return 1 + len(cls.mapped_stages(stages))
