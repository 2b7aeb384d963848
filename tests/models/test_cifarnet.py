"""The network for small images: its formula, its variance, its controls."""

import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normfree
from normfree.errors import UsageError
from normfree.nn import PatchWhitening2d, WSConv2d

NAMES = ("nf_cifarnet", "bn_cifarnet", "gn_cifarnet")
GAMMA = 1.7015043497085571  # of the released GELU


def network(name="nf_cifarnet", **options):
    torch.manual_seed(0)
    return normfree.create_model(name, num_classes=10, **{"widths": (32, 48, 48), **options}).double()


def standardized(conv):
    weight = conv.weight.flatten(1)
    weight = (weight - weight.mean(1, keepdim=True)) / weight.std(1, correction=0, keepdim=True)
    return (weight * weight.shape[1] ** -0.5).view_as(conv.weight) * conv.gain.view(-1, 1, 1, 1)


def gelu(x):
    return F.gelu(x, approximate="tanh")


def test_it_is_what_its_formula_says():
    model = network(depths=(2, 3, 1))
    for p in model.parameters():
        if p.shape == (1,):
            nn.init.constant_(p, 0.7)
        elif p.ndim == 1:
            nn.init.normal_(p, 1.0, 0.1)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    out, variance = F.conv2d(x, model.stem.conv.weight), 1.0
    for stage in model.stages:
        for place, block in enumerate(stage):
            conv = block.conv
            branch = F.conv2d(GAMMA * gelu(out / 1.0) / math.sqrt(variance), standardized(conv), conv.bias, padding=1)
            if place == 0:
                out, variance = F.max_pool2d(branch, 2), 1.0
            else:
                out, variance = out + 0.2 * 0.7 * branch, variance + 0.04
    features = (GAMMA * gelu(out) / math.sqrt(variance)).amax((2, 3)) / 9
    expected = F.linear(features, model.head.fc.weight, model.head.fc.bias)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)  # standardization is in float32


@pytest.mark.parametrize("identity_init", [True, False])
def test_a_convolution_keeps_the_variance_of_a_normal_signal(identity_init):
    model = network(widths=(64, 128, 128), identity_init=identity_init, activation="relu")
    block = model.stages[1][0]
    x = torch.randn(16, 64, 16, 16, dtype=torch.float64)
    out = block.conv(block.act(x))[..., 1:-1, 1:-1]  # without the border
    variance = out.var((0, 2, 3)).mean()
    # the mean over 128 channels of random weights: relative deviation about sqrt(2 / 576 / 128) and the input's
    assert 0.9 < variance < 1.1


def test_the_first_layer_whitens_or_is_trained():
    model = network()
    assert isinstance(model.stem.conv, PatchWhitening2d)
    assert model.stem.conv.out_channels == 24
    assert not model.stem.conv.weight.requires_grad
    assert isinstance(network(stem="3x3").stem.conv, WSConv2d)
    with pytest.raises(UsageError, match="must be one of whiten, 3x3"):
        network(stem="7x7")


def test_a_convolution_that_starts_as_the_identity_passes_on_its_input():
    conv = network().stages[1][0].conv
    raw = conv.weight[:32]
    assert torch.equal(raw, nn.init.dirac_(torch.empty_like(raw)))
    assert conv.weight[32:].std() > 0


@pytest.mark.parametrize("name", ["nf_cifarnet", "gn_cifarnet"])
def test_images_do_not_depend_on_each_other(name):
    model, x = network(name).train(), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(model(x), torch.cat([model(one) for one in x.split(1)]))


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_maps(name):
    model = network(name)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert model(x).shape == (2, 10)
    maps = model.forward_intermediates(x, intermediates_only=True)
    assert [m.shape[-1] for m in maps] == [31, 15, 7, 3]
    assert [entry["num_chs"] for entry in model.feature_info] == [m.shape[1] for m in maps]
    assert model.first_conv == "stem.conv"
    assert model.in_chans == 3


@pytest.mark.parametrize("name", NAMES)
def test_folded_it_is_the_same_function(name):
    model = network(name).float().eval()
    for p in model.parameters():
        if p.shape == (1,):
            nn.init.constant_(p, 0.7)
    x = torch.randn(4, 3, 32, 32)
    folded = normfree.fold(model)
    assert not any(isinstance(module, WSConv2d) for module in folded.modules())
    torch.testing.assert_close(folded(x), model(x), rtol=1e-5, atol=1e-5)  # one scale is multiplied in another order


def test_the_controls_differ_in_nothing_but_the_normalization():
    shapes = {}
    for name in NAMES:
        model = network(name)
        shapes[name] = [p.shape for p in model.parameters() if p.ndim > 1]
    assert shapes["nf_cifarnet"] == shapes["bn_cifarnet"] == shapes["gn_cifarnet"]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in network("bn_cifarnet").modules()) == 6  # all but the first
    assert sum(isinstance(m, nn.GroupNorm) for m in network("gn_cifarnet").modules()) == 6
    assert not any(isinstance(m, nn.BatchNorm2d | nn.GroupNorm) for m in network().modules())


def test_multiply_adds_are_counted_with_the_unpadded_patches():
    info = normfree.models.model_info("nf_cifarnet")
    maps = {31: 24 * 64, 15: 64 * 64 + 64 * 256, 7: 256 * 256 + 256 * 256, 3: 256 * 256}
    by_hand = 31**2 * 12 * 24 + sum(9 * side**2 * pairs for side, pairs in maps.items()) + 256 * 1000
    assert info.macs == info.macs_executed == by_hand


def test_stochastic_depth_drops_branches():
    model = network(stochdepth_rate=0.9, depths=(2, 4, 4)).train()
    for p in model.parameters():
        if p.shape == (1,):
            nn.init.constant_(p, 1.0)
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64).expand(16, -1, -1, -1)
    assert model(x).std(0).max() > 1e-3
    assert model.eval()(x).std(0).max() < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_views_are_averaged_in_evaluation_alone(name):
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    one, two, six = (network(name, views=views).eval() for views in (1, 2, 6))
    mean = (one(x) + one(x.flip(-1))) / 2
    torch.testing.assert_close(two(x), mean)
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    shifted = [one(view) for place in (padded[..., :32, :32], padded[..., 2:, 2:]) for view in (place, place.flip(-1))]
    torch.testing.assert_close(six(x), mean / 2 + sum(shifted) / 8)
    assert not torch.allclose(six(x), one(x))
    torch.testing.assert_close(six.train()(x), network(name).train()(x))


def test_views_must_be_one_of_three():
    with pytest.raises(UsageError, match=r"views \(=3\) must be one of 1, 2, 6"):
        network(views=3)


@pytest.mark.parametrize("name", NAMES)
def test_the_default_that_the_signature_lists_is_the_one_that_holds(name):
    model = network(name)
    defaults = inspect.signature(type(model).__init__).parameters
    assert model.head.global_pool == defaults["global_pool"].default == "max"
    assert model.views == defaults["views"].default == 1
