"""Small networks of the papers' structure, and what is said of them."""

import torch
from torch import nn

import normfree
from normfree.spp import record

# As the papers' in structure; a quarter of the width and half of the depth.
RESNET = dict(depths=(2, 2, 3, 2), widths=(64, 128, 256, 512))
NFNET = dict(depths=(1, 2, 3, 2), widths=(64, 128, 192, 192), group_width=32)
REGNET = dict(depths=(1, 2, 3, 2), widths=(32, 64, 96, 128))
EFFICIENTNET = dict(depths=(1, 2, 2, 2, 2, 3, 1), widths=(16, 24, 32, 48, 64, 96, 128), stem_width=32)
SHAPES = {"nf_resnet50": RESNET, "nf_seresnet50": RESNET, "nfnet_f0": NFNET, "nf_regnet_b0": REGNET}
SHAPES |= {name: RESNET for name in ("bn_resnet50", "bn_resnet50_v1", "fixup_resnet50", "skipinit_resnet50")}
SHAPES |= {"bn_nfnet_f0": NFNET, "nf_efficientnet_b0": EFFICIENTNET, "bn_efficientnet_b0": EFFICIENTNET}
NORMFREE = ["nf_resnet50", "nf_seresnet50", "nfnet_f0", "nf_regnet_b0"]
FIGURES = dict(alpha=1.0, skip_gain=1.0)  # the setting of the paper's figures
SETTINGS = [{}, dict(skip_gain=1.0), FIGURES]
V2_AFTER, LINEAR = dict(order="relu-bn-conv"), dict(activation="identity", stem="7x7-nopool")


def network(name: str, seed: int = 0, small: bool = True, **options) -> nn.Module:
    torch.manual_seed(seed)
    return normfree.create_model(name, num_classes=10, **((SHAPES.get(name, {}) if small else {}) | options))


def blocks(model: nn.Module) -> list[nn.Module]:
    return [block for stage in model.stages for block in stage]


def findings(model: nn.Module, size: int = 64, batch: int = 2, seed: int = 0) -> list:
    return record(model, (batch, 3, size, size), seed=seed).diagnose()


def kinds(model: nn.Module, **options) -> list[str]:
    return [finding.kind for finding in findings(model, **options)]
