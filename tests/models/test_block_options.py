"""Every option of the three families: its equation, its parameters, its gradient, and what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from option_cases import CASES, case_name, network
from small_models import SMALL, blocks, small

import normfree
from normfree import UsageError
from normfree.models import Branch, NFBlock
from normfree.models.config import ModelConfig
from normfree.nn import Activation, ChannelAffine, Role, SameConv2d, SkipInit, WSConv2d, parameter_roles
from normfree.optim import param_groups

DOUBLE = torch.float64
EACH = pytest.mark.parametrize(("name", "options"), CASES, ids=case_name)


def conv(layer, x):
    """A convolution by its definition, without the constants that are folded into it."""
    weight, gain = layer.weight, getattr(layer, "gain", None)
    if isinstance(layer, WSConv2d):
        var, mean = torch.var_mean(weight, (1, 2, 3), correction=0, keepdim=True)
        weight = (weight - mean) / torch.sqrt((var * weight[0].numel()).clamp(min=1e-4))
    weight = weight if gain is None else weight * gain[:, None, None, None]
    if layer.kernel_size == 3:  # as TensorFlow pads
        x = F.pad(x, (1, 1, 1, 1) if layer.stride == 1 or x.shape[-1] % 2 else (0, 1, 0, 1))
    return F.conv2d(x, weight, layer.bias, layer.stride, groups=layer.groups)


def gate(block, mean):
    se = block.squeeze_excite
    return se.factor * torch.sigmoid(F.linear(F.linear(mean, *pair(se.fc0)).relu(), *pair(se.fc1)))[..., None, None]


def pair(linear):
    return linear.weight, linear.bias


def equation(block, x, alpha=0.2):
    """The block's output, every option where the papers write it."""

    def act(h, place):
        if block.affines is not None:
            gain, bias = block.affines[place].gain, block.affines[place].bias
            h = gain[:, None, None] * h + bias[:, None, None]
        return block.act.gamma * block.act(h)

    scaled = act(x, "conv0") / block.beta
    shortcut = x
    if block.conv_shortcut is not None:
        shortcut = conv(block.conv_shortcut, scaled if block.pool is None else F.avg_pool2d(scaled, 2))
    out = conv(block.conv1, act(conv(block.conv0, scaled), "conv1"))
    if block.conv1b is not None:
        out = conv(block.conv1b, act(out, "conv1b"))
    if block.se_position == "middle":
        out = out * gate(block, out.mean((2, 3)))
    out, before = act(out, "conv2"), None
    out, before = conv(block.conv2, out), out
    if block.se_position == "end":
        out = out * gate(block, out.mean((2, 3)))
    if block.se_position == "straddled":
        out = out * gate(block, before.mean((2, 3)))
    return shortcut + alpha * block.skip_init.skip_gain * out


@EACH
def test_a_block_is_its_equation(name, options):
    torch.manual_seed(0)
    for block in blocks(network(name, options).double()):
        x = torch.randn(2, block.in_channels, 8, 8, dtype=DOUBLE)
        # float64 rounding of folded constants
        torch.testing.assert_close(block(x), equation(block, x), rtol=1e-11, atol=1e-12)


@EACH
def test_gradients_are_those_of_the_equation(name, options):
    """Activations are computed again in the backward pass; nothing may be lost by it."""
    torch.manual_seed(0)
    block = blocks(network(name, {"activation": "gelu"} | options).double().train())[-1]
    x = torch.randn(2, block.in_channels, 6, 6, dtype=DOUBLE, requires_grad=True)
    parameters = [x, *block.parameters()]
    weights = torch.randn_like(block(x))
    expected = torch.autograd.grad((equation(block, x) * weights).sum(), parameters)
    found = torch.autograd.grad((block(x) * weights).sum(), parameters)
    for (key, _), one, other in zip([("x", x), *block.named_parameters()], found, expected, strict=True):
        assert other.any(), key
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11, msg=key)  # float64 sums in other orders


@EACH
def test_every_option_is_reachable_from_a_recipe(name, options):
    own = {key: list(value) if isinstance(value, tuple) else value for key, value in (SMALL[name] | options).items()}
    with torch.device("meta"):
        built = ModelConfig(name, options=own).build(num_classes=10, in_chans=3)
    expected = {key: value.shape for key, value in network(name, options).state_dict().items()}
    assert {key: value.shape for key, value in built.state_dict().items()} == expected


@EACH
def test_every_parameter_has_its_group(name, options):
    model = network(name, options)
    groups = param_groups(model, weight_decay=1e-4, clipping=0.01)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    undecayed = model.no_weight_decay()
    assert {key for key, _ in model.named_parameters() if key.endswith(("gain", "bias"))} == undecayed


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    ("affine", "convs", "others"),
    [
        ("conv", {"gain", "bias"}, set()),
        ("gain", {"gain"}, set()),
        ("bias", {"bias"}, set()),
        ("none", set(), set()),
        ("activation", set(), {"gain", "bias"}),
    ],
)
def test_who_has_gains_and_biases(name, affine, convs, others):
    """Purely weight-standardized with "none"; a pair in front of each activation with "activation"."""
    model = small(name, affine=affine)
    for layer in (m for m in model.modules() if isinstance(m, SameConv2d)):
        assert {key for key, _ in layer.named_parameters()} - {"weight"} == convs
    transforms = [m for m in model.modules() if isinstance(m, ChannelAffine)]
    assert bool(transforms) == bool(others)
    if affine == "activation":
        per_block = 4 if "nfnet" in name else 3
        in_stem = 3 if "nfnet" in name else 0
        assert len(transforms) == per_block * len(blocks(model)) + in_stem + 1  # and the last activation
        roles = parameter_roles(model)
        assert {roles[key] for key in roles if ".affines." in key} == {Role.GAIN, Role.BIAS}


def test_a_transform_of_its_own_starts_as_the_identity():
    """So the networks of all choices are the same function at first, but for the order in which weights are drawn."""
    model = normfree.create_model("nf_resnet50", **SMALL["nf_resnet50"], affine="activation", num_classes=10).eval()
    plain = normfree.create_model("nf_resnet50", **SMALL["nf_resnet50"], affine="none", num_classes=10).eval()
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if "affine" not in key})
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(x), plain(x))


def test_transforms_inside_a_branch_are_gains_and_biases_of_the_convolution_in_front():
    """``gain * conv(x) + bias`` is the convolution with that gain and bias: what differs is the block's two ends."""
    torch.manual_seed(0)
    block = blocks(small("nf_resnet50", affine="activation"))[1].double()
    same = NFBlock(32, 32, branch=Branch(ratio=0.25), act=Activation("relu"), beta=block.beta).double()
    with torch.no_grad():
        for before, after in (("conv0", "conv1"), ("conv1", "conv2")):
            same.get_submodule(before).gain.copy_(block.affines[after].gain)
            same.get_submodule(before).bias.copy_(block.affines[after].bias)
        for place in ("conv0", "conv1", "conv2"):
            same.get_submodule(place).weight.copy_(block.get_submodule(place).weight)
        same.skip_init.skip_gain.copy_(block.skip_init.skip_gain)
        block.affines["conv0"].gain.fill_(1.0)
        block.affines["conv0"].bias.zero_()
    x = torch.randn(2, 32, 8, 8, dtype=DOUBLE)
    torch.testing.assert_close(block(x), same(x), rtol=1e-12, atol=1e-13)  # float64 rounding


@pytest.mark.parametrize("name", SMALL)
def test_without_skip_init_branches_are_open_from_the_start(name):
    model = normfree.create_model(name, **SMALL[name], skip_gain=None, num_classes=10)
    assert not any(key.endswith("skip_gain") for key, _ in model.named_parameters())
    assert not any(key.endswith("skip_gain") for key in model.state_dict())
    assert all(
        module.scale().item() == pytest.approx(0.2) for module in model.modules() if isinstance(module, SkipInit)
    )


@pytest.mark.parametrize(("width", "hidden"), [("gated", 54), ("input", 24)])
def test_squeeze_excite_by_the_expanded_width_or_by_the_inputs(width, hidden):
    """48 channels, expanded to 2.25 times as many (108, of which 104 make whole groups): half of one or the other."""
    model = normfree.create_model("nf_regnet_b0", widths=(48, 48, 48, 48), depths=(2, 1, 1, 1), se_width=width)
    block = model.stages[0][1]
    assert block.conv1.in_channels == 104
    assert block.squeeze_excite.fc0.out_features == (52 if hidden == 54 else 24)
    assert (block.squeeze_excite.fc0.in_features, block.squeeze_excite.fc1.out_features) == (104, 104)


def test_the_first_blocks_ratio():
    options = dict(widths=(32, 48, 64, 96), depths=(2, 1, 1, 1))
    widths = {
        ratio: [block.conv1.in_channels for block in blocks(small("nf_regnet_b0", first_ratio=ratio, **options))[:2]]
        for ratio in (1.0, 0.5, None)
    }
    assert widths == {1.0: [32, 72], 0.5: [16, 72], None: [72, 72]}


@pytest.mark.parametrize(
    ("name", "usual"), [("nf_resnet50", "strided"), ("nfnet_f0", "pooled"), ("nf_regnet_b0", "pooled")]
)
def test_shortcuts_of_transitions(name, usual):
    for shortcut in ("strided", "pooled"):
        for block in blocks(small(name, shortcut=shortcut)):
            strided = block.stride == 2
            assert (block.pool is not None) == (strided and shortcut == "pooled")
            if block.conv_shortcut is not None:
                assert block.conv_shortcut.stride == (2 if strided and shortcut == "strided" else 1)
    usually = small(name), small(name, shortcut=usual)
    assert repr(usually[0]) == repr(usually[1])


@pytest.mark.parametrize("name", SMALL)
def test_the_classifiers_first_weight(name):
    model = normfree.create_model(name, **SMALL[name], classifier_std=0.0)
    assert not model.head.fc.weight.any()
    model = normfree.create_model(name, **SMALL[name], classifier_std=0.05)
    weight = model.head.fc.weight
    assert weight.std().item() == pytest.approx(0.05, rel=5 / math.sqrt(2 * weight.numel()))  # five standard errors


@pytest.mark.parametrize("scaling", ["none", "branch", "skip"])
def test_variants_of_stochastic_depth(scaling):
    """Dropped: the skip, times 1 + alpha for "skip". Kept: the branch, over the survival rate for "branch"."""
    torch.manual_seed(0)
    model = small("nf_seresnet50", stochdepth_rate=0.8, stochdepth_scaling=scaling, alpha=0.5).double()
    block = blocks(model)[2]
    assert block.conv_shortcut is None
    rate, x = block.stochdepth.rate, torch.randn(1, block.in_channels, 8, 8, dtype=DOUBLE).expand(64, -1, -1, -1)
    branch = block(x[:1]) - x[:1]
    block.train()
    out = block(x)
    dropped = x[:1] * (1.5 if scaling == "skip" else 1.0)
    kept = x[:1] + branch * (1 / (1 - rate) if scaling == "branch" else 1.0)
    drops = torch.tensor([torch.allclose(one, dropped[0], rtol=1e-12, atol=1e-13) for one in out])
    assert 0 < drops.sum() < 64
    torch.testing.assert_close(out[~drops], kept.expand(64, -1, -1, -1)[~drops], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("nf_resnet50", dict(se_position="middle"), r"se_position \(='middle'\) must be 'end' where squeeze_excite is"),
        ("nf_resnet50", dict(se_width="input"), r"se_width \(='input'\) must be \"gated\" where squeeze_excite is off"),
        (
            "nfnet_f0",
            dict(squeeze_excite=False, se_position="straddled"),
            r"se_position \(='straddled'\) must be 'end'",
        ),
        ("nf_regnet_b0", dict(squeeze_excite=False, se_position="end"), r"se_position \(='end'\) must be 'middle'"),
        (
            "nfnet_f0",
            dict(pointwise_groups=3),
            r"pointwise_groups \(=3\) must divide a block's input channels \(=128\)",
        ),
        ("nfnet_f0", dict(spatial_convs=3), r"spatial_convs \(=3\) must be one of 1, 2"),
        ("nfnet_f0", dict(affine="relu"), r"affine \(='relu'\) must be one of conv, gain, bias, none, activation"),
        ("nf_resnet50", dict(stochdepth_scaling="x"), r"stochdepth_scaling \(='x'\) must be one of none, branch, skip"),
        (
            "nf_resnet50",
            dict(stochdepth_scaling="skip", residual="constant-variance"),
            r"stochdepth_scaling \(='skip'\) must be \"none\" or \"branch\" with residual='constant-variance'",
        ),
        (
            "nf_resnet50",
            dict(affine="gain", standardize=False),
            r"affine \(='gain'\) must be another one with weight_scheme raw",
        ),
        ("nfnet_f0", dict(final="none", final_factor=3), r"final_factor \(=3\) must not be given with final='none'"),
        ("nf_resnet50", dict(shortcut="pool"), r"shortcut \(='pool'\) must be one of strided, pooled"),
        ("nf_resnet50", dict(first_ratio=0), r"first_ratio \(=0\) must be above 0"),
        ("nf_resnet50", dict(classifier_std=-1.0), r"classifier_std \(=-1.0\) must be at least 0"),
    ],
    ids=case_name,
)
def test_what_is_refused_by_name(name, options, said):
    with pytest.raises(UsageError, match=said), torch.device("meta"):
        normfree.create_model(name, **options)
    with pytest.raises(UsageError, match=said), torch.device("meta"):
        ModelConfig(name, options=options).build(num_classes=10, in_chans=3)


def test_channel_attention_is_not_straddled():
    with pytest.raises(UsageError, match=r"attention \(='eca'\) gates what it pools"):
        Branch(ratio=0.5, squeeze_excite="straddled", attention="eca")
