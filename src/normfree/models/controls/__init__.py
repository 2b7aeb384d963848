"""Control networks: with BatchNorm, without any normalization, with only FixUp or SkipInit."""

from .bn_nfnet import BNNFNet
from .bn_resnet import BNResNet, BNResNetV1, PostactBlock
from .fixup_resnet import FixupBlock, FixupResNet, ScalarBias
from .preact import PreactBlock, Preactivation
from .skipinit_resnet import SkipInitResNet

__all__ = [
    "BNNFNet",
    "BNResNet",
    "BNResNetV1",
    "FixupBlock",
    "FixupResNet",
    "PostactBlock",
    "PreactBlock",
    "Preactivation",
    "ScalarBias",
    "SkipInitResNet",
]
