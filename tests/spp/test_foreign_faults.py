"""Faults in networks that nobody here wrote, and their healthy originals."""

import math

import pytest
import timm
import torch
import torchvision
from timm.layers.std_conv import ScaledStdConv2d
from torch import nn

from normfree.spp import SPP, record


def made(name: str, seed: int = 0, **options) -> nn.Module:
    """A network of torchvision, or of timm by ``timm.NAME``."""
    torch.manual_seed(seed)
    if name.startswith("timm."):
        return timm.create_model(name.removeprefix("timm."), **options)
    return getattr(torchvision.models, name)(**options)


@torch.no_grad()
def awake(model: nn.Module) -> nn.Module:
    """With the gains of its branches, which start at 0, at 1."""
    for name, parameter in model.named_parameters():
        if name.endswith("gain") and not parameter.any():
            parameter.fill_(1.0)
    return model


def measured(model: nn.Module, size: int = 64) -> SPP:
    return record(model, (2, 3, size, size))


def blocks(model: nn.Module) -> list[nn.Module]:
    """timm's Normalizer-Free ones."""
    return [module for module in model.modules() if hasattr(module, "attn_gain")]


HEALTHY = ["resnet18", "resnet50", "resnext50_32x4d", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0"]
HEALTHY += ["regnet_y_400mf", "regnet_x_400mf", "mnasnet0_5", "convnext_tiny"]
HEALTHY += [f"timm.{name}" for name in ("resnet50", "seresnet50", "resnetv2_50", "resnetv2_50d_gn", "skresnet18")]
HEALTHY += [f"timm.{name}" for name in ("nf_resnet50", "nf_seresnet50", "nf_regnet_b0", "dm_nfnet_f0", "nfnet_l0")]
HEALTHY += [f"timm.{name}" for name in ("convnext_atto", "poolformer_s12", "rexnet_100", "lambda_resnet26t")]
FIXED_SIZE = {"vit_tiny_patch16_224": 224, "cait_xxs24_224": 224, "xcit_nano_12_p8_224": 224, "mixer_s32_224": 224}
FIXED_SIZE |= {"resmlp_12_224": 224, "coatnet_nano_rw_224": 224, "davit_tiny": 224, "maxvit_pico_rw_256": 256}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_networks(name):
    assert measured(made(name), 96).diagnose() == []


@pytest.mark.parametrize("name", FIXED_SIZE)
def test_healthy_networks_of_other_kinds(name):
    assert measured(made(f"timm.{name}"), FIXED_SIZE[name]).diagnose() == []


@pytest.mark.parametrize("name", ["nf_resnet50", "nf_seresnet50", "nf_ecaresnet50", "nf_regnet_b0", "dm_nfnet_f0"])
@pytest.mark.parametrize("seed", [0, 1])
def test_healthy_normalizer_free_networks_with_branches(name, seed):
    assert measured(awake(made(f"timm.{name}", seed))).diagnose() == []


def test_healthy_with_residuals_that_start_at_zero():
    assert measured(made("resnet50", zero_init_residual=True)).diagnose() == []


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "timm.resnetv2_50"])
def test_batch_norm_taken_out(name):
    model = made(name)
    for module in list(model.modules()):
        for child, layer in list(module.named_children()):
            if isinstance(layer, nn.BatchNorm2d):  # timm's is one with its activation
                setattr(module, child, getattr(layer, "act", nn.Identity()))
    spp = measured(model)
    finding = spp.diagnose()[0]
    worst = max(spp.rows, key=lambda row: row.avg_var)
    assert (finding.kind, finding.blocks) == ("explosion", (worst.block, spp.rows[0].block))
    assert f"{worst.avg_var:.3g} at {worst.block}" in str(finding)


@pytest.mark.parametrize("name", ["nf_seresnet50", "nf_ecaresnet50", "nf_regnet_b0", "dm_nfnet_f0"])
def test_squeeze_excite_without_its_factor(name):
    model = awake(made(f"timm.{name}"))
    for block in blocks(model):
        block.attn_gain = 1.0
    spp = measured(model)
    (finding,) = spp.diagnose()
    assert (finding.kind, finding.blocks) == ("attenuation", tuple(spp.blocks))
    assert "gate averages 0.50" in str(finding)


@pytest.mark.parametrize("name", ["nf_resnet50", "nf_seresnet50", "nf_resnet101"])
def test_the_gain_of_he(name):
    model = awake(made(f"timm.{name}"))
    layers = [layer for layer in model.modules() if isinstance(layer, ScaledStdConv2d)]
    gamma = max(layer.scale * layer.weight[0].numel() ** 0.5 for layer in layers)  # timm keeps it in the convolutions
    assert gamma == pytest.approx((2 / (1 - 1 / math.pi)) ** 0.5, rel=1e-3)
    for layer in layers:
        layer.scale *= math.sqrt(2) / gamma
    (finding,) = measured(model).diagnose()
    assert finding.kind == "attenuation"
    assert "gain of its activation may be too small" in str(finding)


@pytest.mark.parametrize("name", ["nf_resnet50", "dm_nfnet_f0"])
def test_without_beta(name):
    model = awake(made(f"timm.{name}"))
    for block in blocks(model):
        block.beta = block.alpha = 1.0
    assert [finding.kind for finding in measured(model).diagnose()] == ["explosion"]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_a_dead_branch(name):
    model = made(name)
    block = model.layer3[1]
    nn.init.zeros_((block.bn2 if name == "resnet18" else block.bn3).weight)
    (finding,) = measured(model).diagnose()
    assert (finding.kind, finding.blocks) == ("dead branch", ("layer3.1",))
    assert "layer3.1 varies by 0.0e+00" in str(finding)


@pytest.mark.parametrize("name", ["nf_resnet50", "nf_regnet_b0", "dm_nfnet_f0"])
@pytest.mark.parametrize(("factor", "kind"), [(0.0, "dead branch"), (3.0, "branch variance")])
def test_one_branch_of_a_normalizer_free_network(name, factor, kind):
    model = awake(made(f"timm.{name}"))
    block = blocks(model)[5]
    with torch.no_grad():
        block.conv3.gain *= factor
    found = measured(model).diagnose()
    path = next(path for path, module in model.named_modules() if module is block)
    assert [(finding.kind, finding.blocks) for finding in found] == [(kind, (path,))]


@pytest.mark.parametrize("factor", [0.3, 3.0])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_one_branch_of_another_variance(name, factor):
    model = made(name)
    block = model.layer3[1]
    with torch.no_grad():
        (block.bn2 if name == "resnet18" else block.bn3).weight.mul_(factor)
    (finding,) = measured(model).diagnose()
    assert (finding.kind, finding.blocks) == ("branch variance", ("layer3.1",))


@pytest.mark.parametrize("name", ["resnet50", "convnext_tiny", "timm.nf_resnet50"])
def test_not_finite(name):
    model = made(name)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        layers[len(layers) // 2].bias = nn.Parameter(torch.full((layers[len(layers) // 2].out_channels,), math.inf))
    found = measured(model).diagnose()
    assert found[0].kind == "not finite"
    assert len(found) == 1
