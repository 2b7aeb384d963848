"""The papers' networks. Each file has its table of variants and its body; :mod:`.registry` has their names."""

from .block import Branch, NFBlock
from .bn_nfnet import BNNFNet
from .bn_resnet import BNResNet, BNResNetV1, PostactBlock
from .body import NormFreeNet, ResidualNet
from .complexity import count_macs
from .dense import DenseNet, depth_estimator, segmenter
from .detection import DetectionNet, Detections, detector
from .fixup_resnet import FixupBlock, FixupResNet, ScalarBias
from .head import ClassifierHead
from .nf_regnet import NFRegNet
from .nf_resnet import NFResNet
from .nfnet import NFNet
from .preact import PreactBlock, Preactivation
from .registry import ModelInfo, create_model, list_models, model_info
from .skipinit_resnet import SkipInitResNet

__all__ = [
    "BNNFNet",
    "BNResNet",
    "BNResNetV1",
    "Branch",
    "ClassifierHead",
    "DenseNet",
    "DetectionNet",
    "Detections",
    "FixupBlock",
    "FixupResNet",
    "ModelInfo",
    "NFBlock",
    "NFNet",
    "NFRegNet",
    "NFResNet",
    "NormFreeNet",
    "PostactBlock",
    "PreactBlock",
    "Preactivation",
    "ResidualNet",
    "ScalarBias",
    "SkipInitResNet",
    "count_macs",
    "create_model",
    "depth_estimator",
    "detector",
    "list_models",
    "model_info",
    "segmenter",
]
