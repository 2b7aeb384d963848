"""The papers' networks, by name in :mod:`.registry`.

A family is one file with its table of variants: ``nfnet``, ``nf_resnet``, ``nf_regnet``, ``nf_efficientnet``.
``block`` is the residual block of the first three, ``efficientnet`` the shape of the last, ``body`` the network around
the blocks, ``head`` the classifier. Networks to compare with are in ``controls``, segmentation and depth in ``dense``,
Mask R-CNN in ``detection``.
"""

from .block import Branch, NFBlock
from .body import NormFreeNet, ResidualNet
from .complexity import count_macs
from .constant_variance import ConstantVarianceBlock
from .controls import (
    BNEfficientNet,
    BNInvertedBlock,
    BNNFNet,
    BNResNet,
    BNResNetV1,
    BNUNet,
    FixupBlock,
    FixupResNet,
    INUNet,
    PostactBlock,
    PreactBlock,
    Preactivation,
    ScalarBias,
    SkipInitResNet,
)
from .dense import DenseNet, depth_estimator, segmenter
from .detection import DetectionNet, Detections, detector
from .efficientnet import EfficientNet, Inverted, InvertedBlock
from .head import ClassifierHead
from .ladder import NFNET_LADDER, nfnet_rung
from .nf_efficientnet import NFEfficientNet, NFInvertedBlock
from .nf_regnet import NFRegNet
from .nf_resnet import NFResNet
from .nfnet import NFNet
from .registry import ModelInfo, build_model, build_unet, list_models, model_info
from .unet import NFUNet, UNet

create_model = build_model  # normfree.create_model can load weights, too

__all__ = [
    "NFNET_LADDER",
    "BNEfficientNet",
    "BNInvertedBlock",
    "BNNFNet",
    "BNResNet",
    "BNResNetV1",
    "BNUNet",
    "Branch",
    "ClassifierHead",
    "ConstantVarianceBlock",
    "DenseNet",
    "DetectionNet",
    "Detections",
    "EfficientNet",
    "FixupBlock",
    "FixupResNet",
    "INUNet",
    "Inverted",
    "InvertedBlock",
    "ModelInfo",
    "NFBlock",
    "NFEfficientNet",
    "NFInvertedBlock",
    "NFNet",
    "NFRegNet",
    "NFResNet",
    "NFUNet",
    "NormFreeNet",
    "PostactBlock",
    "PreactBlock",
    "Preactivation",
    "ResidualNet",
    "ScalarBias",
    "SkipInitResNet",
    "UNet",
    "build_model",
    "build_unet",
    "count_macs",
    "create_model",
    "depth_estimator",
    "detector",
    "list_models",
    "model_info",
    "nfnet_rung",
    "segmenter",
]
