"""Maps that drown in a concatenation, and standardized weights of a wrong scale, each planted and named."""

import json
import math

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.layers.std_conv import ScaledStdConv2d
from torch import nn

import normfree
from normfree.spp import SPP, record

SHAPE = (4, 3, 8, 8)


def conv(i=8, o=8, **options):
    return nn.Conv2d(i, o, 3, padding=1, **options)


class Joining(nn.Module):
    """``last(cat(x, scale * f(x)))`` added to x, with something behind the concatenation."""

    def __init__(self, scale=1.0, behind=None, extra=lambda x: []):
        super().__init__()
        self.f, self.behind, self.last = conv(), behind or nn.Identity(), nn.LazyConv2d(8, 1)
        self.scale, self.extra = scale, extra

    def forward(self, x):
        self.maps = [x, self.scale * self.f(x), *self.extra(x)]
        return x + self.last(F.relu(self.behind(torch.cat(self.maps, 1))))


def joined(**options) -> SPP:
    torch.manual_seed(0)
    net = nn.Sequential(conv(3), Joining(**options))
    with torch.no_grad():
        net(torch.zeros(SHAPE))
    return record(net, SHAPE)


def kinds(spp: SPP) -> list[str]:
    return [finding.kind for finding in spp.diagnose()]


def test_what_is_joined():
    spp = joined()
    (one,) = spp.concatenations
    assert (one.module, one.channels, one.normalized) == ("1", (8, 8), False)
    assert one.variances[0] == pytest.approx(spp.stem.avg_var)
    assert sum(one.shares) == pytest.approx(1.0)
    assert SPP.from_dict(json.loads(spp.to_json())).concatenations == spp.concatenations
    assert "drowned map" not in kinds(spp)


@pytest.mark.parametrize("scale", [0.05, 30.0])
def test_a_map_that_drowns(scale):
    (finding,) = [finding for finding in joined(scale=scale).diagnose() if finding.kind == "drowned map"]
    assert finding.blocks == ("1",)
    place = 2 if scale < 1 else 1
    assert f"map {place} (8 channels) drowns beside map {3 - place}" in str(finding)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d, lambda n: nn.GroupNorm(n, n)])
def test_a_normalization_of_each_channel_makes_them_alike(norm):
    spp = joined(scale=0.01, behind=norm(16))
    assert spp.concatenations[0].normalized
    assert "drowned map" not in kinds(spp)


def test_a_normalization_over_channels_does_not():
    assert "drowned map" in kinds(joined(scale=0.01, behind=nn.GroupNorm(1, 16)))


def test_padding_and_other_dimensions_are_none():
    assert "drowned map" not in kinds(joined(extra=lambda x: [torch.zeros_like(x)]))
    rows = nn.Sequential(conv(3), Joining())
    rows[1].last = nn.Identity()
    rows[1].forward = lambda x: x + rows[1].f(torch.cat([x[:, :, :4], 1e-3 * x[:, :, 4:]], 2))
    assert record(rows, SHAPE).concatenations == ()


def test_a_skip_of_a_unet_without_its_scale():
    net = normfree.create_model("nf_unet", widths=(16, 32, 64), depths=(1, 1, 1))
    assert record(net, (2, 3, 32, 32)).diagnose() == []
    net.ups[1].concat.scales = (1.0, 0.02)
    (finding,) = record(net, (2, 3, 32, 32)).diagnose()
    assert (finding.kind, finding.blocks) == ("drowned map", ("ups.1.concat",))
    assert "map 2 (16 channels) drowns beside map 1" in str(finding)


def test_a_dense_layer_without_normalization_behind():
    torch.manual_seed(0)
    net = torchvision.models.densenet121()
    blocks = "features.denseblock?.*"
    spp = record(net, (2, 3, 32, 32), blocks=blocks)
    assert all(one.normalized for one in spp.concatenations)
    assert spp.diagnose() == []
    layer = net.features.denseblock2.denselayer7
    layer.norm1 = nn.Identity()
    with torch.no_grad():
        net.features.denseblock2.denselayer3.conv2.weight.mul_(0.01)
    (finding,) = [f for f in record(net, (2, 3, 32, 32), blocks=blocks).diagnose() if f.kind == "drowned map"]
    assert finding.blocks == ("features.denseblock2.denselayer7",)
    assert "map 4 (32 channels) drowns" in str(finding)


@pytest.mark.parametrize("name", ["bn_unet", "in_unet"])
def test_healthy_unets(name):
    net = normfree.create_model(name, widths=(16, 32, 64), depths=(1, 1, 1))
    assert record(net, (2, 3, 32, 32)).diagnose() == []


# Standardized weights


def centred(w):
    return w - w.mean((1, 2, 3), keepdim=True)


def var(w):
    return w.var((1, 2, 3), correction=0, keepdim=True)


GAMMA, FAN_IN = 1.713, 144  # of a ReLU; 16 channels, 3x3
RULES = {
    "right": lambda w: GAMMA * centred(w) / (var(w) * FAN_IN).sqrt(),
    "no fan-in": lambda w: centred(w) / var(w).sqrt(),
    "times fan-in": lambda w: centred(w) / var(w).sqrt() * FAN_IN**0.5,
    "fan-in twice": lambda w: centred(w) / var(w).sqrt() / FAN_IN,
    "times std": lambda w: centred(w) * (var(w) * FAN_IN).sqrt() * FAN_IN,
    "eps": lambda w: GAMMA * centred(w) / ((var(w) + 0.1) * FAN_IN).sqrt(),
    "eps as a bound": lambda w: GAMMA * centred(w) / (var(w) * FAN_IN).clamp(min=10.0).sqrt(),
    "centred": lambda w: centred(w) * 6**0.5,
    "raw": lambda w: w * 6**0.5,
}
SAID = {
    "no fan-in": ("weight scale", "the division by the root of the fan-in is missing"),
    "times fan-in": ("weight scale", "multiplied with the root of the fan-in instead of divided"),
    "fan-in twice": ("weight scale", "divided by the root of the fan-in twice"),
    "times std": ("weight scale", "divide by the standard deviation"),
    "eps": ("epsilon", "eps is much larger than the variance"),
    "eps as a bound": ("epsilon", "eps is much larger than the variance"),
}


class Standardized(nn.Conv2d):
    """A weight standardization of someone's own."""

    def __init__(self, rule, gain=None):
        super().__init__(16, 16, 3, padding=1)
        self.rule, self.gain = RULES[rule], None if gain is None else nn.Parameter(gain)

    def forward(self, x):
        weight = self.rule(self.weight) * (1.0 if self.gain is None else self.gain)
        return F.conv2d(x, weight, self.bias, 1, 1)


class Block(nn.Module):
    def __init__(self, rule, norm=None, gain=None):
        super().__init__()
        self.conv, self.norm = Standardized(rule, gain), norm or nn.Identity()

    def forward(self, x):
        return x + 0.2 * self.norm(self.conv(x.relu()))


def standardized(rule, **options) -> SPP:
    torch.manual_seed(0)
    return record(nn.Sequential(nn.Conv2d(3, 16, 1), Block(rule, **options), Block(rule, **options)), SHAPE)


def of_weights(spp: SPP) -> list:
    return [finding for finding in spp.diagnose() if finding.kind in ("weight scale", "epsilon")]


@pytest.mark.parametrize("rule", SAID)
def test_wrong_scales_are_named(rule):
    (finding,) = of_weights(standardized(rule))
    kind, said = SAID[rule]
    assert (finding.kind, sorted(finding.blocks)) == (kind, ["1.conv", "2.conv"])
    assert said in str(finding)


@pytest.mark.parametrize("rule", ["right", "centred", "raw"])
def test_right_scales_are_not(rule):
    assert of_weights(standardized(rule)) == []


def test_theory_of_the_two_numbers():
    (one, _) = standardized("right", gain=torch.linspace(0.2, 3, 16).view(-1, 1, 1, 1)).weights
    assert one.scale == pytest.approx(GAMMA**2, rel=1e-4)
    assert one.exponent == pytest.approx(0.0, abs=1e-3)
    assert standardized("times std").weights[0].exponent == pytest.approx(2.0, abs=1e-3)
    assert standardized("centred").weights[0].exponent == pytest.approx(1.0, abs=1e-3)
    share = 0.1 / (0.1 + 1 / (3 * FAN_IN))  # torch initializes with variance 1 / (3 fan-in)
    assert standardized("eps").weights[0].exponent == pytest.approx(share, abs=1e-2)
    assert standardized("raw").weights == ()
    spp = standardized("right")
    assert SPP.from_dict(json.loads(spp.to_json())).weights == spp.weights


def test_a_normalization_behind_makes_the_scale_irrelevant():
    spp = standardized("no fan-in", norm=nn.GroupNorm(4, 16))
    assert all(one.normalized for one in spp.weights)
    assert of_weights(spp) == []


def timms(name: str = "nf_regnet_b0") -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name)


def test_timms_are_right():
    weights = record(timms(), (2, 3, 32, 32)).weights
    gamma = normfree.activation_gain("silu")
    assert len(weights) > 30
    assert [one.scale for one in weights] == pytest.approx([gamma**2] * len(weights), rel=0.01)
    bit = record(timms("resnetv2_50x1_bit"), (2, 3, 32, 32))  # standardized without fan-in, with GroupNorm
    assert all(one.normalized for one in bit.weights)
    assert of_weights(bit) == []


@pytest.mark.parametrize(("fault", "kind"), [("eps", "epsilon"), ("scale", "weight scale")])
def test_faults_in_timms(fault, kind):
    net = timms()
    layers = [layer for layer in net.modules() if isinstance(layer, ScaledStdConv2d)]
    for layer in layers:
        if fault == "eps":
            layer.eps = 1.0
        else:
            layer.scale *= layer.weight[0].numel()  # times the root where it should be divided by it
    found = of_weights(record(net, (2, 3, 32, 32)))
    assert {finding.kind for finding in found} == {kind}
    assert max(len(finding.blocks) for finding in found) > 30
    assert math.isfinite(record(net, (2, 3, 32, 32)).weights[0].scale)


def test_ours_are_not_judged():
    assert record(normfree.create_model("nf_resnet26_small"), (2, 3, 32, 32)).weights == ()
