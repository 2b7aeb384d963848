"""NF-EfficientNet: its equation, its betas, the variance where there is no skip, and raw depthwise weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from golden_data import relative
from small_models import EFFICIENTNETS, blocks, small
from torch import nn

import normfree
from normfree import UsageError
from normfree.export import prepack
from normfree.functional import expected_skip_variances, expected_variances, standardize_weight
from normfree.models import Inverted, NFInvertedBlock
from normfree.models.backbone import level_scales
from normfree.nn import Activation, ChannelAffine, SameConv2d, WSConv2d, parameter_roles
from normfree.optim import param_groups

DOUBLE = torch.float64
NAME = "nf_efficientnet_b0"
# NF-ResNets, table 3, B0 to B5
PAPER_PARAMS = (8.3, 9.8, 13.4, 17.6, 28.5, 47.5)


def convolution(conv, x):
    """By its definition, with TensorFlow's padding and without constants that are folded into it."""
    weight = conv.weight
    if isinstance(conv, WSConv2d):
        weight = standardize_weight(weight, conv.gain)
    before = (conv.kernel_size - (2 if conv.stride == 2 and x.shape[-1] % 2 == 0 else 1)) // 2
    behind = conv.kernel_size - 1 - before - (1 if conv.stride == 2 and x.shape[-1] % 2 == 0 else 0)
    x = F.pad(x, (before, behind, before, behind))
    return F.conv2d(x, weight, conv.bias, conv.stride, groups=conv.groups)


@pytest.mark.parametrize(
    "options",
    [{}, dict(skip_gain=0.5), dict(standardize_depthwise=False), dict(activation="gelu", alpha=0.4, se_factor=1.5)],
    ids=str,
)
def test_block_is_its_equation(options):
    """x + alpha * skip_gain * f(x / beta), or f alone; gamma behind every activation."""
    model = small(NAME, **options).double()
    alpha = options.get("alpha", 0.2)
    for number, block in enumerate(blocks(model)):
        x = torch.randn(2, block.in_channels, 8, 8, dtype=DOUBLE)

        def act(h, block=block):
            return block.act.gamma * block.act(h)

        def linear(layer, h):
            return F.linear(h, layer.weight, layer.bias)

        out = x / block.beta
        if block.conv0 is not None:
            out = act(convolution(block.conv0, out))
        out = act(convolution(block.conv1, out))
        se = block.squeeze_excite
        # the mean is of the bare activation, whose gamma the next convolution has
        hidden = block.act(linear(se.fc0, out.mean((2, 3)) / block.act.gamma))
        out = out * (se.factor * linear(se.fc1, hidden).sigmoid())[:, :, None, None]
        out = convolution(block.conv2, out)
        if block.has_skip:
            out = x + alpha * (1.0 if "skip_gain" not in options else block.skip_init.skip_gain) * out
        # float64 rounding of folded constants
        torch.testing.assert_close(block(x), out, rtol=1e-10, atol=1e-11, msg=lambda m, n=number: f"block {n}: {m}")


def test_expected_variances_where_blocks_have_no_skip():
    """They grow as in a stage of NF-ResNets, from the one block without a skip to the next."""
    for depth in (1, 2, 5):
        grown = expected_skip_variances([False] + [True] * depth, alpha=0.3)[1:]
        assert grown == pytest.approx([1.0, *(1 + k * 0.3**2 for k in range(1, depth + 1))], rel=1e-12)
        assert grown[1:] == pytest.approx(expected_variances([depth + 1], alpha=0.3)[0][1:], rel=1e-12)
    assert expected_skip_variances([True, False], 0.5, first=0.3) == pytest.approx([0.3, 0.55, 1.0], rel=1e-12)


def test_beta_is_the_square_root_of_the_expected_variance():
    model = normfree.create_model(NAME)
    gamma = model.act.gamma
    # depths 1 2 2 3 3 4 1; no stage's first block has a skip
    variances = [gamma**-2]
    for depth in (1, 2, 2, 3, 3, 4, 1):
        variances += [1 + 0.04 * k for k in range(depth)]
    assert [block.beta for block in blocks(model)] == pytest.approx([math.sqrt(v) for v in variances[:-1]], rel=1e-12)
    for number, block in enumerate(blocks(model)):
        first = block.conv1 if number == 0 else block.conv0
        assert first.input_scale == pytest.approx(1 / block.beta, rel=1e-12)  # gamma behind the stem
    assert model.final_conv.input_scale == pytest.approx(1, rel=1e-12)  # the last stage is a block without a skip
    deeper = normfree.create_model(NAME, depths=(1, 2, 2, 3, 3, 4, 3))
    assert deeper.final_conv.input_scale == pytest.approx(1.08**-0.5, rel=1e-12)


def test_scales_of_maps_are_those_of_theory():
    """Of the stem's map, behind stages 1, 2, 4 and behind the final convolution."""
    model = normfree.create_model(NAME, depths=(1, 2, 2, 3, 3, 4, 1))
    assert level_scales(model) == pytest.approx([1.0, 1.04**-0.5, 1.04**-0.5, 1.08**-0.5, 1.0])
    model.prune_intermediate_layers([2])
    assert level_scales(model)[:3] == pytest.approx([1.0, 1.04**-0.5, 1.04**-0.5])


def test_skip_gain_is_an_option():
    """Without it there is no learnable scalar; with 0 (SkipInit) blocks with a skip are the identity at first."""
    names = [name for name, _ in small(NAME).named_parameters()]
    assert not [name for name in names if "skip_gain" in name]
    model = normfree.create_model(NAME, **EFFICIENTNETS[NAME], skip_gain=0.0)
    skips = [name for name, _ in model.named_parameters() if "skip_gain" in name]
    assert len(skips) == sum(block.has_skip for block in blocks(model)) == 4
    for block in blocks(model):
        x = torch.randn(2, block.in_channels, 6, 6)
        assert torch.equal(block(x), x) == block.has_skip


def test_roles():
    model = small(NAME, standardize_depthwise=False, skip_gain=0.0)
    roles = {name: role.value for name, role in parameter_roles(model).items()}
    for name, role in roles.items():
        last = name.rpartition(".")[2]
        assert role == ("classifier" if name == "head.fc.weight" else last), name
    groups = {group["name"]: group for group in param_groups(model, weight_decay=1e-4, clipping=0.01)}
    assert [groups[role]["clipping"] for role in ("weight", "gain", "skip_gain", "classifier")] == [0.01] * 3 + [None]
    depthwise = next(block.conv1 for block in blocks(model))
    assert any(parameter is depthwise.weight for parameter in groups["weight"]["params"])


@torch.no_grad()
def test_raw_depthwise_weights_pass_the_mean_on():
    """A channel's mean behind them is the activation's times the sum of 9 weights of variance 1 / 9; standardized
    weights sum to 0. This is the mean shift that Scaled Weight Standardization removes (NF-ResNets, section 4.1)."""
    x, act = torch.randn(8, 600, 32, 32), Activation("silu")
    for standardize, expected in ((True, 0.0), (False, act.gamma**2 * act(torch.randn(10**6)).mean().item() ** 2)):
        block = NFInvertedBlock(Inverted(600, 8, expansion=1), act=act, depthwise=None if standardize else SameConv2d)
        block.conv1.input_scale = act.gamma
        out = block.conv1(act(x))[..., 1:-1, 1:-1]
        squared_mean = out.mean((0, 2, 3)).square().mean().item()
        # standard error of 600 squares of normal numbers: sqrt(2 / 600) = 6 %; and of the means of 7,200 values
        assert squared_mean == pytest.approx(expected, rel=0.3, abs=1e-3)
        assert out.var((0, 2, 3)).mean().item() == pytest.approx(1, rel=0.1)


def test_which_depthwise_convolutions_have_raw_weights():
    for name, options, standardize in (
        (NAME, {}, True),
        (NAME, dict(standardize_depthwise=False), False),
        ("nf_regnet_b0", dict(group_width=1), True),
        ("nf_regnet_b0", dict(group_width=1, standardize_depthwise=False), False),
    ):
        model = small(name, **options)
        convolutions = [module for module in model.modules() if isinstance(module, SameConv2d)]
        depthwise = [conv for conv in convolutions if conv.groups == conv.in_channels > 1]
        assert len(depthwise) == len(blocks(model))
        assert {isinstance(conv, WSConv2d) for conv in depthwise} == {standardize}
        assert all(isinstance(conv, WSConv2d) for conv in convolutions if conv not in depthwise)


@torch.no_grad()
@pytest.mark.parametrize("name", [NAME, "nf_regnet_b0"])
def test_a_raw_depthwise_convolution_keeps_the_constants_of_its_input(name):
    options = dict(group_width=1) if name == "nf_regnet_b0" else {}
    model = small(name, **options, standardize_depthwise=False).double()
    for block in blocks(model)[1:]:
        x = torch.randn(1, block.conv1.in_channels, 7, 7, dtype=DOUBLE)
        assert relative(block.conv1(x), convolution(block.conv1, block.act.gamma * x)) < 1e-12  # float64 rounding
    x = torch.randn(2, 3, 64, 64, dtype=DOUBLE)
    assert relative(normfree.fold(model)(x), model(x)) < 1e-12


@pytest.mark.parametrize(
    ("affine", "convs"),
    [("gain", {"gain"}), ("bias", {"bias"}), ("none", set()), ("activation", set())],
)
@pytest.mark.parametrize("standardize", [True, False])
def test_gains_and_biases(affine, convs, standardize):
    """A raw depthwise convolution has no gain; with "activation" there is a pair in front of each activation."""
    model = small(NAME, affine=affine, standardize_depthwise=standardize)
    for layer in (m for m in model.modules() if isinstance(m, SameConv2d)):
        own = convs if isinstance(layer, WSConv2d) else convs - {"gain"}
        assert {key for key, _ in layer.named_parameters()} - {"weight"} == own
    transforms = [m.gain.numel() for m in model.modules() if isinstance(m, ChannelAffine)]
    if affine == "activation":
        expected = [b.conv1.out_channels for b in blocks(model) for _ in range(1 + (b.conv0 is not None))]
        assert transforms == [16, *expected, 4 * 56]  # of the stem, of the blocks, in front of the last activation
    else:
        assert transforms == []


@torch.no_grad()
def test_transforms_in_front_of_activations_are_gains_and_biases_of_the_convolutions():
    """Those of a block's first two convolutions, whose outputs are activated; its last one has none."""
    apart, same = small(NAME, affine="activation", skip_gain=0.0).double(), small(NAME, skip_gain=0.0).double()
    for block, other in zip(blocks(apart), blocks(same), strict=True):
        state = block.state_dict()
        for before, behind in (("conv0", "conv1"), ("conv1", "conv2")):
            for key in ("gain", "bias"):
                if f"affines.{behind}.{key}" in state:
                    state[f"{before}.{key}"] = state.pop(f"affines.{behind}.{key}")
        state |= {"conv2.gain": torch.ones_like(other.conv2.gain), "conv2.bias": torch.zeros_like(other.conv2.bias)}
        other.load_state_dict(state)
        x = torch.randn(2, block.in_channels, 8, 8, dtype=DOUBLE)
        assert relative(block(x), other(x)) < 1e-12  # float64 rounding


@torch.no_grad()
@pytest.mark.parametrize("affine", ["gain", "bias", "none", "activation"])
def test_folded_and_prepacked_with_gains_and_biases_elsewhere(affine):
    model, x = small(NAME, affine=affine).double(), torch.randn(2, 3, 33, 33, dtype=DOUBLE)
    assert relative(normfree.fold(model)(x), model(x)) < 1e-12
    images = x.float()
    assert relative(prepack(model.float(), images.shape)(images).double(), model.double()(x)) < 1e-5  # float32 rounding


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(affine="relu"), r"affine \(='relu'\) must be one of conv, gain, bias, none, activation"),
        (dict(affine="gain", weight_scheme="raw"), r"affine \(='gain'\) must be another one with weight_scheme raw"),
    ],
    ids=str,
)
def test_wrong_gains_and_biases(options, message):
    with pytest.raises(UsageError, match=message):
        small(NAME, **options)


def test_nothing_but_depthwise_convolutions_can_be_left_raw():
    with pytest.raises(UsageError, match=r"standardize_depthwise \(=False\) needs group_width 1, not 8"):
        small("nf_regnet_b0", standardize_depthwise=False)
    with pytest.raises(UsageError, match=r"gamma \(=0\) must be above 0"):
        small(NAME, gamma=0)


@pytest.mark.parametrize("level", range(6))
def test_regnets_with_depthwise_convolutions_have_nearly_the_papers_parameters(level):
    """8.31, 9.68, .. M; the released widths of 8 have 8.60, 10.02, .. M."""
    params = [
        normfree.model_info(f"nf_regnet_b{level}", **options).params / 1e6 for options in (dict(group_width=1), {})
    ]
    assert params[0] == pytest.approx(PAPER_PARAMS[level], rel=0.013)
    assert abs(params[0] - PAPER_PARAMS[level]) < abs(params[1] - PAPER_PARAMS[level])


def test_a_block_alone_folds():
    block = small(NAME).stages[2][1].double()
    assert isinstance(block, NFInvertedBlock)
    x = torch.randn(2, block.in_channels, 8, 8, dtype=DOUBLE)
    folded = normfree.fold(block)
    assert relative(folded(x), block(x)) < 1e-12
    assert all(type(layer) is nn.Conv2d for layer in (folded.conv0, folded.conv1, folded.conv2))
    assert torch.equal(normfree.fold(folded)(x), folded(x))
