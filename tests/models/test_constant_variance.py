"""The residual block of constant variance: its equation, its theory, folded."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_models import SMALL, blocks, shake

import normfree
from normfree import UsageError
from normfree.export import prepack
from normfree.models import ConstantVarianceBlock, segmenter
from normfree.models.backbone import feature_scale
from normfree.models.config import ModelConfig
from normfree.nn import SameConv2d
from normfree.spp.predict import normfree_variances

DOUBLE = torch.float64
OPTIONS = dict(residual="constant-variance", activation="selu", standardize=False)


def new(**options):
    return normfree.create_model("nf_resnet50", num_classes=10, **SMALL["nf_resnet50"] | OPTIONS | options)


def small(**options):
    name = "nf_seresnet50" if options.get("squeeze_excite") else "nf_resnet50"
    return shake(normfree.create_model(name, num_classes=10, **SMALL[name] | OPTIONS | options).eval())


@pytest.mark.parametrize("squeeze_excite", [False, True])
def test_block_is_its_equation(squeeze_excite):
    for block in blocks(small(squeeze_excite=squeeze_excite, alpha=0.7, gamma=1.3).double()):
        assert isinstance(block, ConstantVarianceBlock)
        x = torch.randn(2, block.in_channels, 8, 8, dtype=DOUBLE)

        def conv(layer, h):
            padding = 0 if layer.padding == "same" and layer.stride > 1 else layer.kernel_size // 2
            h = F.pad(h, (0, 1, 0, 1)) if layer.kernel_size == 3 and layer.stride == 2 else h  # "SAME" of an even size
            return F.conv2d(1.3 * F.selu(h), layer.weight, layer.bias, layer.stride, padding)

        shortcut = x if block.conv_shortcut is None else conv(block.conv_shortcut, x)
        branch = conv(block.conv2, conv(block.conv1, conv(block.conv0, x)))
        if block.squeeze_excite is not None:
            branch = block.squeeze_excite(branch)
        a = 0.7 * block.skip_init.skip_gain.item()
        expected = (shortcut + a * branch) / math.sqrt(1 + a**2)
        torch.testing.assert_close(block(x), expected, rtol=1e-11, atol=1e-12)  # float64 rounding


def test_gradient_of_the_skip_gain_is_that_of_the_equation():
    block = blocks(small().double())[1].train()
    x = torch.randn(2, block.in_channels, 5, 5, dtype=DOUBLE)
    gain = block.skip_init.skip_gain

    def output(value):
        return torch.func.functional_call(block, {"skip_init.skip_gain": value}, (x,)).square().mean()

    assert torch.autograd.gradcheck(output, gain.detach().clone().requires_grad_())


def test_a_skip_gain_of_0_passes_the_signal_on():
    block = new().stages[0][1]
    x = torch.randn(2, block.in_channels, 6, 6)
    assert torch.equal(block(x), x)


def test_stochastic_depth_drops_the_branch_alone():
    block = blocks(small())[1].train()
    block.stochdepth.rate = 0.999999
    x = torch.randn(4, block.in_channels, 6, 6)
    a = 0.2 * block.skip_init.skip_gain.detach()
    torch.testing.assert_close(block(x), x / torch.sqrt(1 + a * a))
    block.stochdepth.rate = 1e-6
    torch.testing.assert_close(block(x), block.eval()(x))


@torch.no_grad()
@pytest.mark.parametrize("squeeze_excite", [False, True])
def test_folded_and_prepacked_it_is_the_same_function(squeeze_excite):
    model, x = small(squeeze_excite=squeeze_excite, alpha=0.8), torch.randn(2, 3, 48, 48)
    folded = normfree.fold(model)
    assert not any(isinstance(module, SameConv2d) for module in folded.modules())
    exact = model.double()(x.double())
    for form in (folded, normfree.fold(folded)):  # folding twice is folding once
        torch.testing.assert_close(form(x).double(), exact, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(prepack(folded, x.shape)(x).double(), exact, rtol=1e-4, atol=1e-5)


def test_beta_is_1_everywhere_and_theory_keeps_the_variance():
    model = new(alpha=0.5, skip_gain=1.0)
    assert {block.beta for block in blocks(model)} == {1.0}
    for variance, branch in normfree_variances(blocks(model)):
        # SELU's fixed point is a variance of 1; normfree_variances rounds variances to three digits
        assert (variance, branch) == pytest.approx((1.0, 1.0), rel=2e-3)
    assert feature_scale(model) == 1.0
    assert segmenter(new(), 3)(torch.randn(1, 3, 32, 32)).shape[1] == 3


def test_it_is_an_option_of_recipes():
    model = ModelConfig("nf_resnet26_small", options=OPTIONS).build(num_classes=10, in_chans=1)
    assert all(type(block) is ConstantVarianceBlock for block in blocks(model))
    with pytest.raises(UsageError, match=r"model\.options\.residual .* must be one of growing-variance, const"):
        ModelConfig("nf_resnet26_small", options=dict(residual="constant")).build(num_classes=10, in_chans=1)
    with pytest.raises(UsageError, match=r"residual \(='constant'\) must be one of"):
        normfree.models.NFResNet(widths=(32,), depths=(1,), residual="constant")
