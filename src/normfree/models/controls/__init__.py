"""Control networks: with BatchNorm or GroupNorm, without any normalization, with only FixUp or SkipInit."""

from .bn_efficientnet import BNEfficientNet, BNInvertedBlock
from .bn_nfnet import BNNFNet
from .bn_resnet import BNResNet, BNResNetV1, GNResNet, PostactBlock
from .fixup_resnet import FixupBlock, FixupResNet, ScalarBias
from .preact import PreactBlock, Preactivation
from .skipinit_resnet import SkipInitResNet
from .unet import BNUNet, INUNet, NormUNetBlock

__all__ = [
    "BNEfficientNet",
    "BNInvertedBlock",
    "BNNFNet",
    "BNResNet",
    "BNResNetV1",
    "BNUNet",
    "FixupBlock",
    "FixupResNet",
    "GNResNet",
    "INUNet",
    "NormUNetBlock",
    "PostactBlock",
    "PreactBlock",
    "Preactivation",
    "ScalarBias",
    "SkipInitResNet",
]
