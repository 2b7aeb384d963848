"""Blocks of torchvision and timm as they are: fused normalizations, their residual networks."""

import pytest
import torch
import torchvision
from foreign_blocks import collect, conv
from torch import nn

from normfree import UsageError
from normfree.convert import Rescale, convert
from normfree.nn import BATCH_NORM, SkipInit, WSConv2d

timm = pytest.importorskip("timm")


def fused():
    from timm.layers import BatchNormAct2d, GroupNormAct, LayerNorm2d

    return nn.Sequential(
        *(conv(3, 16), BatchNormAct2d(16), conv(16, 16), GroupNormAct(16, 1, group_size=4)),
        *(nn.AvgPool2d(2), BatchNormAct2d(16), conv(16, 16), LayerNorm2d(16), nn.ReLU()),
    )


def test_a_fused_normalization_leaves_its_activation():
    net = fused()
    new = convert(net, (8, 3, 16, 16)).model
    assert not [m for m in new.modules() if "Norm" in type(m).__name__]
    assert isinstance(new.get_submodule("1.act"), nn.ReLU)
    assert isinstance(new.get_submodule("3.act"), nn.ReLU)
    assert isinstance(new.get_submodule("5.scale"), Rescale)  # it follows no convolution
    assert isinstance(new.get_submodule("5.act"), nn.ReLU)
    seen = []
    new.get_submodule("5.act").register_forward_pre_hook(
        lambda m, args: seen.append(args[0].var((0, 2, 3)).mean().item())
    )
    new.eval()(torch.randn(16, 3, 16, 16))
    assert seen[0] == pytest.approx(1, abs=0.25)


def test_a_shortcut_that_starts_behind_one():
    from timm.layers import BatchNormAct2d

    net = nn.Sequential(conv(3, 16), BatchNormAct2d(16), torchvision.models.resnet.BasicBlock(16, 16))
    new = convert(net, (8, 3, 16, 16)).model
    assert new.get_submodule("signal_scale").factor == pytest.approx(1.71, rel=0.1)


def test_keeping_one_keeps_its_outputs():
    net = collect(fused()).eval()
    new = convert(net, (8, 3, 16, 16), mode="keep").model
    x = torch.randn(4, 3, 16, 16)
    assert torch.allclose(new(x), net(x), rtol=1e-4, atol=1e-5)
    assert not [m for m in new.modules() if isinstance(m, BATCH_NORM)]


def test_a_resnet_of_torchvision():
    net = torchvision.models.resnet18(num_classes=4)
    conversion = convert(net, (8, 3, 32, 32))
    assert sum(isinstance(m, WSConv2d) for m in conversion.model.modules()) == 20
    assert sum(isinstance(m, SkipInit) for m in conversion.model.modules()) == 8
    reset = {change.module for change in conversion.changes if change.module.endswith("act_scale")}
    assert reset == {f"layer{stage}.0.act_scale" for stage in (2, 3, 4)}
    assert conversion.model(torch.randn(1, 3, 32, 32)).shape == (1, 4)


def test_auxiliary_classifiers_are_refused():
    net = torchvision.models.googlenet(init_weights=False, num_classes=4, aux_logits=True)
    with pytest.raises(UsageError, match="computes something else in training"):
        convert(net, (4, 3, 64, 64))
