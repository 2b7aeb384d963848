"""timm's Normalizer-Free networks, as timm computes them. They are other functions than the released networks.

Differences from the papers' networks: epsilon is added to the variance in the standardization; GELU is the erf form;
gamma is part of the weight of every convolution, also of the first and the last one, and not behind the last activation
(all but ``dm_nfnet``); widths are rounded to multiples of 8; there is no SkipInit (all but ``dm_nfnet``); padding is
symmetric (all but ``dm_nfnet``); NF-ResNets average-pool in their shortcuts. ``nfnet_l*``, ``eca_*`` and the 26-layer
ones are timm's own.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal, Unpack

from torch import nn

from ..gain import model_gain
from ..nn import Activation, MaxPoolSame, WSConv2d
from .block import Branch, divisible
from .body import NormFreeNet, RegularizedOptions
from .nf_regnet import TABLE as _REGNETS
from .stem import DEEP, AnyStem, conv_stem, deep_stem

_EPS = 1e-5


def _nfnet(k: int, widths: Sequence[int] = (256, 512, 1536, 1536), **options: Any) -> dict[str, Any]:
    depths = tuple(depth * (k + 1) for depth in (1, 2, 6, 3))
    defaults = dict(stem="4x 3x3", stem_channels=128, ratio=0.5, group_width=128, spatial_convs=2, se_ratio=0.5)
    return dict(widths=widths, depths=depths, final_factor=2.0, activation="gelu_erf") | defaults | options


def _light(k: int, **options: Any) -> dict[str, Any]:
    return _nfnet(k, ratio=0.25, group_width=64, activation="silu", **options)


def _resnet(depths: Sequence[int], **options: Any) -> dict[str, Any]:
    defaults = dict(stem="7x7", stem_channels=64, ratio=0.25, activation="relu", attention=None)
    return dict(widths=(256, 512, 1024, 2048), depths=tuple(depths)) | defaults | options


def _regnet(pattern: Sequence[int], depths: Sequence[int]) -> dict[str, Any]:
    widths = tuple(divisible(0.75 * width, 8) for width in pattern)
    final = divisible(0.75 * (1280 * pattern[-1] // 440), 8)
    options = dict(stem="3x3-stride2", ratio=2.25, group_width=8, se_ratio=0.5, regnet=True, activation="silu")
    return dict(widths=widths, depths=depths, stem_channels=widths[0], final_channels=final) | options


def _sized(variant: dict[str, Any], train: int, test: int) -> dict[str, Any]:
    return variant | dict(train_size=train, test_size=test)


_NFNET_SIZES = ((192, 256), (224, 320), (256, 352), (320, 416), (384, 512), (416, 544), (448, 576), (480, 608))
_RESNETS = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_REGNET_SIZES = ((192, 256), (256, 288), (240, 272), (288, 320), (320, 384), (384, 456))
_LIGHT_SIZES = ((224, 288), (256, 320), (320, 384), (352, 448))

VARIANTS = (
    {f"timm_dm_nfnet_f{k}": _sized(_nfnet(k, released=True), *_NFNET_SIZES[k]) for k in range(7)}
    | {f"timm_nfnet_f{k}": _sized(_nfnet(k), *_NFNET_SIZES[k]) for k in range(8)}
    | {"timm_nfnet_l0": _sized(_light(0, final_factor=1.5, se_ratio=0.25), *_LIGHT_SIZES[0])}
    | {
        f"timm_eca_nfnet_l{k}": _sized(
            _light(k, attention="eca", final_factor=1.5 if k == 0 else 2.0), *_LIGHT_SIZES[k]
        )
        for k in range(4)
    }
    | {
        f"timm_nf_regnet_{name}": _sized(_regnet(*_REGNETS[name][:2]), *sizes)
        for name, sizes in zip(("b0", "b1", "b2", "b3", "b4", "b5"), _REGNET_SIZES, strict=True)
    }
    | {
        f"timm_nf_{prefix}resnet{layers}": _sized(
            _resnet(depths, attention=attention), *((256, 288) if (layers, attention) == (50, None) else (224, 224))
        )
        for prefix, attention in (("", None), ("se", "se"), ("eca", "eca"))
        for layers, depths in _RESNETS.items()
    }
    | {
        "timm_test_nfnet": _sized(
            _light(0, widths=(32, 64, 96, 128), final_factor=1.5, se_ratio=0.25)
            | dict(depths=(1, 1, 1, 1), group_width=8),
            160,
            160,
        )
    }
)


class TimmNFNet(NormFreeNet):
    """One of timm's Normalizer-Free networks: (N, in_chans, H, W) -> (N, num_classes).

    ``released=True`` (``dm_nfnet``) is the released NFNet except for the epsilon and the erf form of GELU.
    """

    family = "timm"

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        stem: AnyStem,
        stem_channels: int,
        ratio: float,
        group_width: int | None = None,
        spatial_convs: int = 1,
        attention: Literal["se", "eca"] | None = "se",
        se_ratio: float = 1 / 16,
        final_factor: float | None = None,
        final_channels: int | None = None,
        regnet: bool = False,
        released: bool = False,
        activation: str = "gelu_erf",
        in_chans: int = 3,
        alpha: float = 0.2,
        **options: Unpack[RegularizedOptions],
    ):
        act = Activation(activation, model_gain("gelu" if activation == "gelu_erf" else activation))
        conv = functools.partial(WSConv2d, padding="same" if released else "symmetric", eps=_EPS, add_eps=True)
        super().__init__(
            stem=_stem(stem, conv, act, in_chans, stem_channels, 1.0 if released else act.gamma),
            widths=widths,
            depths=depths,
            strides=(2 if regnet else 1, 2, 2, 2),
            branch=Branch(
                ratio=ratio,
                expand_input=regnet,
                group_width=group_width,
                spatial_convs=spatial_convs,
                squeeze_excite=None if attention is None else ("middle" if regnet else "end"),
                attention=attention or "se",
                se_ratio=se_ratio,
                divisor=8,
                pool_shortcut=True,
                conv=conv,
            ),
            first_ratio=1.0 if regnet else None,
            final_channels=final_channels if final_factor is None else divisible(int(widths[-1] * final_factor), 8),
            act=act,
            alpha=alpha,
            skip_gain=0.0 if released else None,
            **options,
        )
        if not released:
            self._move_gamma(act.gamma)

    def _move_gamma(self, gamma: float) -> None:
        """gamma is in the last convolution's weight instead of behind the last activation; branches start at 0."""
        self.feature_gamma = 1.0
        if isinstance(self.final_conv, WSConv2d):
            self.final_conv.input_scale = gamma
        for name, gain in self.stages.named_parameters():
            if name.endswith("conv2.gain"):
                nn.init.zeros_(gain)


def _stem(
    kind: str, conv: functools.partial[WSConv2d], act: Activation, in_chans: int, channels: int, scale: float
) -> nn.Sequential:
    if kind == DEEP:
        return deep_stem(in_chans, (channels // 8, channels // 4, channels // 2, channels), conv, act, scale)
    same = conv.keywords["padding"] == "same"
    pool = MaxPoolSame if same else functools.partial(nn.MaxPool2d, 3, 2, padding=1)
    return conv_stem(kind, functools.partial(conv, input_scale=scale), in_chans, channels, pool=pool)
