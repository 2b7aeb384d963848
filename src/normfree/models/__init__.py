"""The papers' networks. Each file has its table of variants and its body; :mod:`.registry` has their names."""

from .block import Branch, NFBlock
from .body import ClassifierHead, NormFreeNet
from .complexity import count_macs
from .nf_regnet import NFRegNet
from .nf_resnet import NFResNet
from .nfnet import NFNet
from .registry import ModelInfo, create_model, list_models, model_info

__all__ = [
    "Branch",
    "ClassifierHead",
    "ModelInfo",
    "NFBlock",
    "NFNet",
    "NFRegNet",
    "NFResNet",
    "NormFreeNet",
    "count_macs",
    "create_model",
    "list_models",
    "model_info",
]
