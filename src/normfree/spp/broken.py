"""Three networks of torchvision and timm, each with one fault that the signal propagation plot finds.

::

    normfree spp normfree.spp.broken:without_normalization
    normfree spp normfree.spp.broken:bare_squeeze_excite
    normfree spp normfree.spp.broken:dead_branch
"""

import timm
import torchvision
from timm.models.nfnet import NormFreeBlock
from torch import nn


def without_normalization() -> nn.Module:
    """torchvision's ResNet-50 without its BatchNorm."""
    model = torchvision.models.resnet50()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    return model


def bare_squeeze_excite() -> nn.Module:
    """timm's Normalizer-Free SE-ResNet-50 without the factor 2 behind Squeeze-Excite."""
    model = timm.create_model("nf_seresnet50")
    for module in model.modules():
        if isinstance(module, NormFreeBlock):
            vars(module)["attn_gain"] = 1.0
            nn.init.ones_(module.get_parameter("conv3.gain"))  # branches start at 0; measure them at 1
    return model


def dead_branch() -> nn.Module:
    """torchvision's ResNet-50 with one branch set to zero."""
    model = torchvision.models.resnet50()
    nn.init.zeros_(model.get_parameter("layer3.2.bn3.weight"))
    return model
