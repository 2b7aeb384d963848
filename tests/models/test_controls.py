"""What the controls are made of, and what they refuse."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_models import CONTROLS, SMALL, WITHOUT_NORM, batch_norms, blocks, grads, small

import normfree
from normfree import UsageError
from normfree.gain import RELEASED_GAINS, he_gain
from normfree.models import Branch, NFBlock, PostactBlock, PreactBlock, Preactivation
from normfree.nn import Activation, SameConv2d, SqueezeExcite, WSConv2d

DOUBLE = torch.float64
WITH_NORM = [name for name in CONTROLS if name not in WITHOUT_NORM]


def convolutions(model):
    return [module for module in model.modules() if isinstance(module, SameConv2d)]


@pytest.mark.parametrize("name", CONTROLS)
def test_no_standardization_anywhere(name):
    model = small(name)
    assert not any(isinstance(module, WSConv2d | NFBlock) for module in model.modules())
    assert {conv.input_scale for conv in convolutions(model)} == {1.0}
    for module in model.modules():
        assert getattr(module, "gamma", 1.0) == 1.0
        if isinstance(module, SqueezeExcite):
            assert module.factor == 1.0


@pytest.mark.parametrize("name", WITHOUT_NORM)
def test_no_normalization_layer(name):
    model = small(name)
    # what there is: no kind of normalization, of torch or ours, is among it
    kinds = {type(module).__name__ for module in model.modules() if not list(module.children())}
    assert kinds <= {"SameConv2d", "Activation", "Identity", "MaxPoolSame", "Dropout", "Linear"} | {
        *("ScalarBias", "SkipInit", "StochasticDepth")
    }
    assert not list(model.buffers())


@pytest.mark.parametrize("name", WITH_NORM)
def test_one_batch_norm_per_convolution(name):
    model = small(name)
    norms = batch_norms(model)
    assert {(norm.eps, norm.momentum, norm.affine) for norm in norms} == {(1e-5, 0.1, True)}  # Haiku's epsilon; 1 - 0.9
    assert all(conv.bias is None for conv in convolutions(model))
    shortcuts = sum(block.conv_shortcut is not None for block in blocks(model))
    # V1: behind each convolution. V2: in front of each but the first, and at the end; the shortcut shares the branch's.
    # NFNet: its last 1x1 convolution follows the last stage directly.
    without = {"bn_resnet50_v1": 0, "bn_resnet50": shortcuts, "bn_nfnet_f0": shortcuts + 1}[name]
    assert len(norms) == len(convolutions(model)) - without


@pytest.mark.parametrize("name", ["plain_resnet50", "fixup_resnet50"])
def test_convolutions_without_bias(name):
    assert not any(conv.bias is not None for conv in convolutions(small(name)))


def test_skipinits_convolutions_have_biases_but_the_stems():
    model = small("skipinit_resnet50")
    assert [conv for conv in convolutions(model) if conv.bias is None] == [model.stem.conv]


@pytest.mark.parametrize("name", CONTROLS)
def test_first_blocks_project(name):
    """Each changes channels or stride; the third stage here the stride alone."""
    model = small(name, widths=(32, 64, 64, 96), depths=(2, 2, 1, 1))
    assert [block.conv_shortcut is not None for block in blocks(model)] == [True, False, True, False, True, True]


@pytest.mark.parametrize("projection", [True, False])
def test_a_projection_may_be_asked_for_where_the_shape_stays(projection):
    branch = Branch(ratio=0.25, conv=SameConv2d)
    for block in (
        PreactBlock(16, 16, branch=branch, pre=Preactivation(), projection=projection),
        PostactBlock(16, 16, branch=branch, projection=projection),
    ):
        assert (block.conv_shortcut is not None) == projection
        assert block(torch.randn(2, 16, 5, 5)).shape == (2, 16, 5, 5)


@pytest.mark.parametrize("name", CONTROLS)
def test_every_parameter_gets_a_gradient(name):
    model = small(name).train()
    F.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    for key, gradient in grads(model).items():
        assert torch.isfinite(gradient).all(), key
        assert gradient.any(), key


@pytest.mark.parametrize("name", WITH_NORM)
def test_examples_of_a_batch_see_each_other_in_training_only(name):
    model = small(name).double()
    x = torch.randn(4, 3, 33, 33, dtype=DOUBLE)
    alone = model(x[:2])
    torch.testing.assert_close(model(x)[:2], alone, rtol=1e-11, atol=1e-12)  # float64 rounding
    assert not torch.allclose(model.train()(x)[:2], model(x[:2]), rtol=1e-3)


@pytest.mark.parametrize("name", WITH_NORM)
def test_running_statistics_move_in_training_only(name):
    model, x = small(name), torch.randn(4, 3, 32, 32)
    before = {key: value.clone() for key, value in model.named_buffers()}
    model(x)
    assert all(torch.equal(value, before[key]) for key, value in model.named_buffers())
    model.train()(x)
    assert all(not torch.equal(value, before[key]) for key, value in model.named_buffers())


@pytest.mark.parametrize("name", CONTROLS)
def test_the_activation_reaches_every_place(name):
    model = small(name, activation="tanh")
    assert {module.name for module in model.modules() if isinstance(module, Activation)} == {"tanh"}


def test_identity_activation_without_pooling_is_a_linear_network():
    model = small("bn_resnet50", activation="identity", stem="7x7-nopool", squeeze_excite=False).double()
    x, y = torch.randn(2, 1, 3, 32, 32, dtype=DOUBLE)
    zero = model(torch.zeros_like(x))
    # affine in evaluation: f(x) + f(y) = f(x + y) + f(0); float64 rounding
    torch.testing.assert_close(model(x) + model(y), model(x + y) + zero, rtol=1e-10, atol=1e-11)


def test_raw_weights_instead_of_standardized_ones():
    model = small("nf_resnet50", standardize=False).double()
    assert not any(isinstance(module, WSConv2d) for module in model.modules())
    block, x = blocks(model)[1], torch.randn(2, 32, 6, 6, dtype=DOUBLE)
    assert model.act.gamma == he_gain("relu") == pytest.approx(math.sqrt(2), rel=1e-12)

    def conv(layer, h):
        return F.conv2d(math.sqrt(2) * h.relu(), layer.weight, layer.bias, padding=layer.kernel_size // 2)

    branch = conv(block.conv2, conv(block.conv1, conv(block.conv0, x / block.beta)))
    # float64 rounding
    torch.testing.assert_close(block(x), x + 0.2 * block.skip_init.skip_gain * branch, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("standardize", [True, False])
def test_gamma_may_be_given(standardize):
    assert small("nf_resnet50", standardize=standardize, gamma=1.5).act.gamma == 1.5
    default = small("nf_resnet50", standardize=standardize, activation="tanh").act.gamma
    assert default == (RELEASED_GAINS["tanh"] if standardize else he_gain("tanh"))


@pytest.mark.parametrize("name", ["nfnet_f0", "nf_regnet_b0", "nf_seresnet50"])
def test_factor_of_squeeze_excite_and_initial_skip_gain(name):
    model = normfree.create_model(name, **SMALL[name], se_factor=1.0, skip_gain=0.7)
    gates = [module for module in model.modules() if isinstance(module, SqueezeExcite)]
    assert [gate.factor for gate in gates] == [1.0] * len(blocks(model))
    skip_gains = [block.skip_init.skip_gain.item() for block in blocks(model)]
    assert skip_gains == pytest.approx([0.7] * len(gates), rel=1e-7)  # float32


def test_unmodified_squeeze_excite_halves_the_branch():
    block = blocks(small("nf_seresnet50", se_factor=1.0).double())[2]
    x = torch.randn(2, block.in_channels, 4, 4, dtype=DOUBLE)
    half = block(x) - x
    block.squeeze_excite.factor = 2.0
    torch.testing.assert_close(block(x) - x, 2 * half, rtol=1e-11, atol=1e-12)  # float64 rounding


@pytest.mark.parametrize(
    ("name", "options", "quoted"),
    [
        ("bn_resnet50", dict(order="relu-conv-bn"), r"order \(='relu-conv-bn'\) must be one of bn-relu-conv, relu-bn"),
        ("plain_resnet50", dict(stem="5x5"), r"stem \(='5x5'\) must be one of 7x7, 7x7-nopool, 3x3"),
        ("fixup_resnet50", dict(activation="rellu"), r"activation \(='rellu'\).* relu"),
        ("skipinit_resnet50", dict(num_classes=-1), r"num_classes \(=-1\)"),
        ("bn_resnet50_v1", dict(in_chans=0), r"in_channels \(=0\)"),
        ("bn_resnet50_v1", dict(drop_rate=1.0), r"drop_rate \(=1.0\)"),
        ("bn_resnet50", dict(depths=(1, 1)), r"depths \(1, 1\)"),
        ("bn_resnet50", dict(widths=(8,) * 5, depths=(1,) * 5), r"widths .* strides \(1, 2, 2, 2\)"),
        ("fixup_resnet50", dict(depths=(1, 0, 1, 1)), r"depths \(=\(1, 0, 1, 1\)\) must be a list of"),
        ("fixup_resnet50", dict(ratio=1e-4), r"out_channels \(=0\)"),
        ("bn_resnet50", dict(squeeze_excite=True, se_ratio=0), r"se_ratio \(=0\) must be above 0"),
        ("bn_nfnet_f0", dict(group_width=4096), r"group_width \(=4096\)"),
        ("bn_resnet50", dict(alpha=1), r"'alpha' is unknown for bn_resnet50"),
        ("bn_resnet50", dict(nrom=False), r"'nrom' is unknown for bn_resnet50; did you mean norm"),
        ("nf_resnet50", dict(standardise=False), r"did you mean standardize"),
        *((name, dict(stochdepth_rate=-0.1), r"stochastic depth rate \(=") for name in CONTROLS),
    ],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_bad_options_are_quoted(name, options, quoted):
    with torch.device("meta"), pytest.raises(UsageError, match=quoted):
        normfree.create_model(name, **options)


@pytest.mark.parametrize("name", CONTROLS)
def test_stochastic_depth_grows_with_depth(name):
    model = small(name, stochdepth_rate=0.6)
    rates, n = [block.stochdepth.rate for block in blocks(model)], len(blocks(model))
    assert rates == pytest.approx([0.6 * i / n for i in range(n)], rel=1e-12)
    info = normfree.model_info(name)
    assert (info.drop_rate, info.stochdepth_rate) == ((0.2, 0.25) if "nfnet" in name else (0.0, 0.0))
