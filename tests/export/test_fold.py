"""Folding: the same function, plain convolutions, nothing else left."""

import copy
import itertools

import pytest
import timm
import torch
from precision import assert_same_function, in_float64
from small_models import SMALL, shake, small
from torch import nn

import normfree
import normfree.timm
from normfree import UsageError
from normfree.models import NFBlock
from normfree.nn import PaddedConv2d, SameConv2d, ScaledActivation, SkipInit, WSConv2d


def relative(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", [*SMALL, "nf_efficientnet_b0"])
@pytest.mark.parametrize("size", [(64, 64), (75, 66)])
def test_same_function(name, size):
    torch.manual_seed(0)
    model, x = small(name), torch.randn(4, 3, *size)
    folded = normfree.fold(model)
    with torch.no_grad():
        # the same weights to the bit; a gate's constants may be multiplied in another order
        exact = in_float64(model)
        assert_same_function(folded, model, exact, x)
        assert_same_function(folded.forward_features, model.forward_features, exact.forward_features, x)


@pytest.mark.parametrize("name", [*SMALL, "nf_efficientnet_b0"])
def test_only_plain_convolutions_are_left(name):
    folded = normfree.fold(small(name))
    kinds = {type(module) for module in folded.modules()}
    assert not any(issubclass(kind, (SameConv2d, SkipInit)) for kind in kinds)
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    names = [name for name, _ in folded.named_parameters()]
    assert not [name for name in names if name.endswith(("gain", "skip_gain"))]
    assert {nn.Conv2d, PaddedConv2d} >= {kind for kind in kinds if issubclass(kind, nn.Conv2d)}


TIMM = ["timm_dm_nfnet_f0", "timm_test_nfnet", "timm_nf_regnet_b0", "timm_nf_seresnet26", "timm_nf_ecaresnet26"]


@pytest.mark.parametrize("name", TIMM)
def test_timms_functions(name):
    torch.manual_seed(0)
    model, x = shake(normfree.create_model(name, num_classes=10, depths=(1, 2, 1, 1)).eval()), torch.randn(4, 3, 75, 66)
    folded = normfree.fold(model)
    assert not any(isinstance(module, SameConv2d) for module in folded.modules())
    with torch.no_grad():
        assert_same_function(folded, model, in_float64(model), x)


def test_copy_and_in_place():
    model = small("nf_resnet50")
    before = copy.deepcopy(model.state_dict())
    folded = normfree.fold(model)
    assert folded is not model
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert normfree.fold(model, inplace=True) is model
    assert not any(isinstance(module, SameConv2d) for module in model.modules())


def test_folding_twice_changes_nothing():
    torch.manual_seed(0)
    once, x = normfree.fold(small("nf_seresnet50")), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(normfree.fold(once)(x), once(x))


def test_training_mode_is_refused_by_name():
    with pytest.raises(UsageError, match=r"evaluation mode; NFResNet is in training mode: call model.eval\(\)"):
        normfree.fold(small("nf_resnet50").train())
    model = small("nf_resnet50")
    model.stages[1][0].training = True
    with pytest.raises(UsageError, match=r"stages\.1\.0 is in training mode"):
        normfree.fold(model)
    with pytest.raises(UsageError, match="not a Tensor"):
        normfree.fold(torch.zeros(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["nfnet_f0", "nf_resnet50"])
def test_low_precision_after_folding(name, dtype):
    torch.manual_seed(0)
    model, x = small(name), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        got = normfree.fold(model).to(dtype)(x.to(dtype)).float()
    # about ten layers of rounding at 2^-9 (bfloat16) and 2^-12 (float16)
    assert relative(got, expected) < {torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]


class Own(nn.Module):
    """A network of one's own: convolutions of ours at every stride and padding, one of them used twice."""

    def __init__(self):
        super().__init__()
        self.act = ScaledActivation("relu")
        self.first = WSConv2d(3, 8, 3, 2, input_scale=0.7)
        self.twice = WSConv2d(8, 8, 3, dilation=2, groups=2)
        self.layers = nn.ModuleDict(
            {"last": nn.Sequential(WSConv2d(8, 4, 4, 2, bias=False), SameConv2d(4, 4, 2, 3, 1))}
        )
        self.again = self.twice

    def forward(self, x):
        x = self.again(self.act(self.twice(self.first(x))))
        return self.layers["last"](x)


def test_networks_of_ones_own():
    torch.manual_seed(0)
    model = shake(Own()).eval()
    folded = normfree.fold(model)
    assert folded.twice is folded.again  # one layer stays one layer
    for height, width in itertools.product((17, 18, 19, 20), (17, 20)):
        x = torch.randn(2, 3, height, width)
        with torch.no_grad():
            torch.testing.assert_close(folded(x), model(x))
    layer = shake(WSConv2d(3, 4, 3, 2)).eval()
    assert type(normfree.fold(layer)) is PaddedConv2d


def test_a_block_alone():
    torch.manual_seed(0)
    block = copy.deepcopy(small("nfnet_f0").stages[1][0])
    assert isinstance(block, NFBlock)
    x = torch.randn(2, block.in_channels, 16, 16)
    with torch.no_grad():
        assert_same_function(normfree.fold(block), block, in_float64(block), x)


def test_folded_networks_keep_their_interface():
    model = small("nfnet_f0")
    folded = normfree.fold(model)
    assert folded.num_features == model.num_features
    assert folded.feature_info == model.feature_info
    folded.reset_classifier(3)
    assert folded.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 3)


def test_the_signal_of_a_folded_network_can_be_recorded():
    torch.manual_seed(0)
    model = small("nf_resnet50")
    spp = normfree.spp.record(normfree.fold(model), (2, 3, 64, 64))
    expected = normfree.spp.record(model, (2, 3, 64, 64))
    assert spp.blocks == expected.blocks
    assert spp.avg_var == pytest.approx(expected.avg_var, rel=1e-5)


def looked_at(model, names):
    """What hooks in front of and behind the named modules see."""
    seen = {}
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen.update({f"{name}<": args[0]})
        )
        model.get_submodule(name).register_forward_hook(lambda _, args, out, name=name: seen.update({name: out}))
    return seen


@torch.no_grad()
@pytest.mark.parametrize("name", ["nfnet_f0", "nf_resnet50", "nf_seresnet50"])
@pytest.mark.parametrize("change", [normfree.fold, lambda model: normfree.export.prepack(model, (1, 3, 64, 64))])
def test_hooks_see_the_same(name, change):
    torch.manual_seed(0)
    model, x = small(name), torch.randn(1, 3, 64, 64)
    called = [name for name, module in model.named_modules() if name and not list(module.children())]
    seen = looked_at(model, called)
    model(x)
    expected = dict(seen)
    changed = change(model)
    seen.clear()
    changed(x)
    assert seen.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(seen[key], value, rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("change", [normfree.fold, lambda model: normfree.export.prepack(model, (1, 3, 64, 64))])
def test_hooks_of_timms_pyramids(change):
    torch.manual_seed(0)
    options = dict(out_indices=(0, 1, 2, 3, 4), feature_cls="hook", features_only=True)
    model, x = timm.create_model("normfree_nf_regnet_b0", **options).eval(), torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(change(model)(x), model(x), rtol=1e-3, atol=1e-4)


def test_hooks_that_change_an_output_and_their_handles():
    torch.manual_seed(0)
    model, x = nn.Sequential(WSConv2d(3, 4, 3), WSConv2d(4, 4, 3, 2)).eval(), torch.randn(1, 3, 8, 8)
    plain = model(x).detach()
    handle = model[1].register_forward_hook(lambda module, args, out: out * 2)
    normfree.fold(model, inplace=True)
    torch.testing.assert_close(model(x), 2 * plain)
    handle.remove()
    torch.testing.assert_close(model(x), plain)


class Doubled(WSConv2d):
    def forward(self, x, scale=None):
        return super().forward(x, scale) * 2


class DoubledWeight(WSConv2d):
    def effective_weight(self, scale=None):
        return super().effective_weight(scale) * 2


class SaysHow(Doubled):
    def folded(self, scale=None, **options):
        return super().folded(torch.tensor([2.0]) if scale is None else scale * 2, **options)


@pytest.mark.parametrize("inplace", [False, True])
def test_subclasses_with_a_forward_of_their_own_are_refused_by_name(inplace):
    model = nn.Sequential(WSConv2d(3, 3, 3), nn.Sequential(Doubled(3, 4, 3))).eval()
    with pytest.raises(UsageError, match=r"what 1\.0 computes: Doubled has its own forward"):
        normfree.fold(model, inplace=inplace)
    assert type(model[0]) is WSConv2d
    with pytest.raises(UsageError, match="what 0 computes"):
        normfree.export.prepack(nn.Sequential(Doubled(3, 4, 3)).eval(), (1, 3, 8, 8))
    model[1][0] = WSConv2d(3, 4, 3).eval()
    model[1][0].forward = lambda x: x
    with pytest.raises(UsageError, match=r"what 1\.0 computes: WSConv2d has its own forward"):
        normfree.fold(model)


@pytest.mark.parametrize("kind", [DoubledWeight, SaysHow])
def test_subclasses_that_say_how_they_fold(kind):
    torch.manual_seed(0)
    model, x = nn.Sequential(kind(3, 4, 3, bias=False)).eval(), torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(normfree.fold(model)(x), model(x))


class Scaled(nn.Module):
    """Calls its layers with a scale, and asks for their weights."""

    def __init__(self):
        super().__init__()
        self.a, self.rest = WSConv2d(3, 4, 3), nn.ModuleList([WSConv2d(4, 4, 3, 2), SameConv2d(4, 2, 1)])

    def forward(self, x):
        scale = x.new_tensor([0.5])
        x = self.rest[1](self.rest[0](self.a(x, scale), scale), scale=scale)
        return x * self.a.standardized_weight(scale).norm() * self.rest[1].effective_weight().norm()


@torch.no_grad()
def test_layers_that_are_called_with_a_scale():
    torch.manual_seed(0)
    model, x = shake(Scaled()).eval(), torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(normfree.fold(model)(x), model(x))
    layer, scale = shake(WSConv2d(3, 4, 3)).eval(), torch.tensor([0.5])
    torch.testing.assert_close(normfree.fold(layer)(x, scale), layer(x, scale))


def test_a_convolution_alone_is_not_folded_in_place():
    with pytest.raises(UsageError, match="alone cannot be folded in place"):
        normfree.fold(WSConv2d(3, 4, 3).eval(), inplace=True)
