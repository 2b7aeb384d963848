"""Layers of one, two and three dimensions over one implementation."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normfree
from normfree.errors import UsageError
from normfree.functional import standardize_weight
from normfree.nn import (
    AvgPoolSame,
    ChannelAffine,
    DecoupledWSConv1d,
    DecoupledWSConv3d,
    EfficientChannelAttention,
    MaxPoolSame,
    SameConv1d,
    SameConv2d,
    SameConv3d,
    ScaledActivation,
    ScaledConcat,
    SoftWSConv1d,
    SoftWSConv3d,
    SqueezeExcite,
    StochasticDepth,
    WNConv1d,
    WNConv3d,
    WSConv1d,
    WSConv2d,
    WSConv3d,
    WSLinear,
    parameter_roles,
)
from normfree.optim import AGC, WeightPull, param_groups
from normfree.private import ExamplePasses

DOUBLE = torch.float64
CLOSE = dict(rtol=1e-12, atol=1e-12)
CONVS = {1: WSConv1d, 2: WSConv2d, 3: WSConv3d}
RAW = {1: SameConv1d, 2: SameConv2d, 3: SameConv3d}
PLAIN = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def randomized(layer):
    """Gains and biases away from 1 and 0, or a mistake in them would not show."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.endswith(("gain", "bias")):
                parameter.normal_().add_(1.0)
    return layer


CASES = {
    "plain": dict(kernel_size=3),
    "strided": dict(kernel_size=3, stride=2),
    "dilated": dict(kernel_size=3, dilation=2),
    "grouped": dict(kernel_size=3, groups=2),
    "even": dict(kernel_size=2, stride=2),
    "symmetric": dict(kernel_size=3, stride=2, padding="symmetric"),
    "numbers": dict(kernel_size=3, padding=1),
    "atrous": dict(kernel_size=3, atrous=2),
    "pointwise": dict(kernel_size=1, stride=2),
}


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_a_dimension_more_of_one_place_changes_nothing(dims, case):
    """WSConv of dimension d is that of d + 1 whose kernel, stride and dilation are 1 on a new first axis."""
    options = dict(CASES[case])
    kernel = options.pop("kernel_size")
    small = randomized(CONVS[dims](4, 6, kernel, input_scale=1.3, dtype=DOUBLE, **options))
    expanded = {
        name: (0 if name == "padding" else 1, *(value,) * dims)
        for name, value in options.items()
        if name != "groups" and value != "symmetric"
    }
    options |= expanded
    large = CONVS[dims + 1](4, 6, (1, *(kernel,) * dims), input_scale=1.3, dtype=DOUBLE, **options)
    with torch.no_grad():
        large.weight.copy_(small.weight.unsqueeze(2))
        large.gain.copy_(small.gain)
        large.bias.copy_(small.bias)
    x = torch.randn(2, 4, *(7, 6)[:dims], dtype=DOUBLE, requires_grad=True)
    one, two = small(x), large(x.unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(one, two, **CLOSE)
    upstream = torch.randn_like(one)
    inputs = lambda layer: [x, layer.weight, layer.gain, layer.bias]  # noqa: E731
    a = torch.autograd.grad(one, inputs(small), upstream)
    b = torch.autograd.grad(two, inputs(large), upstream)
    torch.testing.assert_close([g.flatten() for g in a], [g.flatten() for g in b], **CLOSE)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_it_is_torchs_convolution_of_the_standardized_weight(dims, case):
    options = dict(CASES[case])
    kernel = options.pop("kernel_size")
    layer = randomized(CONVS[dims](4, 6, kernel, dtype=DOUBLE, **options))
    x = torch.randn(2, 4, *(6,) * dims, dtype=DOUBLE)
    weight = standardize_weight(layer.weight, layer.gain)
    stride, dilation = options.get("stride", 1), options.get("dilation", 1)
    before = {"strided": 0, "even": 0, "pointwise": 0, "atrous": 0, "dilated": 2}.get(case, 1)
    after = {"strided": 1, "even": 0, "pointwise": 0, "atrous": 2, "dilated": 2}.get(case, 1)
    padded = F.pad(x, (before, after) * dims)
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dims]
    expected = convolve(padded, weight, layer.bias, stride, 0, dilation, options.get("groups", 1))
    torch.testing.assert_close(layer(x), expected, **CLOSE)


@pytest.mark.parametrize("kernel_size", [(1, 3), (5, 1), (2, 3)])
@pytest.mark.parametrize("stride", [1, (1, 2), (2, 1)])
def test_axes_may_differ(kernel_size, stride):
    layer = randomized(WSConv2d(4, 6, kernel_size, stride, dtype=DOUBLE))
    x = torch.randn(2, 4, 6, 8, dtype=DOUBLE)
    strides = (stride, stride) if isinstance(stride, int) else stride
    pads = []
    for size, k, s in reversed(list(zip((6, 8), kernel_size, strides, strict=True))):
        total = max(0, (-(-size // s) - 1) * s + k - size)
        pads += [total // 2, total - total // 2]
    expected = F.conv2d(F.pad(x, pads), standardize_weight(layer.weight, layer.gain), layer.bias, stride)
    torch.testing.assert_close(layer(x), expected, **CLOSE)
    assert layer(x).shape[2:] == tuple(-(-size // s) for size, s in zip((6, 8), strides, strict=True))


def test_one_number_and_the_same_for_each_axis_are_one_layer():
    a, b = WSConv3d(4, 6, 3, 2, padding=1), WSConv3d(4, 6, (3, 3, 3), [2, 2, 2], padding=(1, 1, 1))
    assert repr(a) == repr(b)
    assert (b.kernel_size, b.stride, b.padding) == (3, 2, 1)
    assert WSConv3d(4, 6, (1, 3, 3)).kernel_size == (1, 3, 3)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(
    "geometry", [dict(kernel_size=3), dict(kernel_size=4, stride=2), dict(kernel_size=3, dilation=2)]
)
def test_the_variance_stays_1(dims, groups, geometry):
    """Behind a scaled activation, at places whose taps are all inside; averaged over many output channels."""
    side = {1: 1000, 2: 32, 3: 12}[dims]
    x = ScaledActivation("relu")(torch.randn(2, 32, *(side,) * dims))
    out = CONVS[dims](32, 128, **geometry, groups=groups, padding=0)(x)
    var = out.movedim(1, 0).flatten(1).var(1).mean().item()
    assert var == pytest.approx(1.0, abs=0.1)  # 128 channels of random weights, overlapping places


@pytest.mark.parametrize("layer", [WSConv1d(2, 3, 2), WSConv2d(2, 3, (1, 2), (2, 1)), WSConv3d(2, 2, 2, groups=2)])
def test_gradients_are_right(layer):
    layer = randomized(layer.double())
    x = torch.randn(1, 2, *(3,) * layer.dims, dtype=DOUBLE, requires_grad=True)
    parameters = [layer.weight, layer.gain, layer.bias]
    names = ("weight", "gain", "bias")

    def function(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *parameters))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_folding_and_saving_keep_the_function(dims, case):
    options = dict(CASES[case])
    make = lambda: CONVS[dims](4, 6, input_scale=0.7, dtype=DOUBLE, **options)  # noqa: E731
    layer, other = randomized(make()), make()
    x = torch.randn(2, 4, *(7,) * dims, dtype=DOUBLE)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    folded = normfree.fold(nn.Sequential(layer).eval())[0]
    assert isinstance(folded, PLAIN[dims])
    torch.testing.assert_close(folded(x), layer(x), **CLOSE)
    scale = torch.tensor([0.3], dtype=DOUBLE)
    torch.testing.assert_close(normfree.fold(layer.eval())(x, scale), layer(x, scale), **CLOSE)


@pytest.mark.parametrize("kind", [WNConv1d, WNConv3d, DecoupledWSConv1d, DecoupledWSConv3d, SoftWSConv1d, SoftWSConv3d])
def test_weight_schemes_have_every_dimension(kind):
    layer = kind(8, 16, 3)
    x = torch.randn(1, 8, *(5,) * layer.dims)
    assert layer(x).shape[2:] == x.shape[2:]
    torch.testing.assert_close(layer.effective_weight().flatten(1).norm(dim=1), torch.ones(16))
    folded = normfree.fold(layer.eval())
    torch.testing.assert_close(folded(x), layer(x))


def test_pulls_find_layers_of_every_dimension():
    model = nn.Sequential(DecoupledWSConv1d(4, 8, 3), DecoupledWSConv3d(4, 8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    WeightPull(optimizer, model)
    x = torch.randn(1, 4, 6)
    (model[0](x).square().sum() + model[1](x[..., None, None]).square().sum()).backward()
    optimizer.step()
    for layer in model:
        torch.testing.assert_close(layer.weight, standardize_weight(layer.weight), atol=1e-6, rtol=0)


class TestLinear:
    def test_is_a_linear_layer_of_the_standardized_weight(self):
        layer, x = randomized(WSLinear(5, 3, input_scale=1.7, dtype=DOUBLE)), torch.randn(2, 4, 5, dtype=DOUBLE)
        expected = F.linear(1.7 * x, standardize_weight(layer.weight, layer.gain), layer.bias)
        torch.testing.assert_close(layer(x), expected, **CLOSE)
        scale = torch.tensor([0.3], dtype=DOUBLE)
        torch.testing.assert_close(layer(x, scale), 0.3 * expected, **CLOSE)
        folded = normfree.fold(nn.Sequential(layer).eval())[0]
        assert type(folded) is nn.Linear
        torch.testing.assert_close(folded(x), expected, **CLOSE)
        assert repr(layer) == "WSLinear(5, 3, input_scale=1.7)"

    def test_keeps_the_variance(self):
        out = WSLinear(256, 256)(ScaledActivation("gelu")(torch.randn(4000, 256)))
        assert out.var(0).mean().item() == pytest.approx(1.0, abs=0.05)

    def test_clips_rows(self):
        layer = WSLinear(4, 2)
        groups = param_groups(layer, clipping=0.01)
        assert {g["name"]: len(g["params"]) for g in groups} == {"weight": 1, "gain": 1, "bias": 1}
        agc = AGC(torch.optim.SGD(groups, lr=0.0))
        layer(torch.randn(8, 4)).square().sum().mul(1e4).backward()
        agc.step()
        bound = 0.01 * layer.weight.norm(dim=1)
        torch.testing.assert_close(layer.weight.grad.norm(dim=1), bound.detach())

    @pytest.mark.parametrize(("options", "quoted"), [(dict(in_features=1), "one weight"), (dict(in_features=0), "=0")])
    def test_refuses_what_it_cannot_standardize(self, options, quoted):
        with pytest.raises(UsageError, match=quoted):
            WSLinear(**dict(out_features=3) | options)


@pytest.mark.parametrize("dims", [1, 2, 3])
class TestAnyDimension:
    def test_squeeze_excite(self, dims):
        gate, x = SqueezeExcite(8), torch.randn(2, 8, *(4,) * dims)
        by_hand = 2 * torch.sigmoid(gate.fc1(gate.fc0(x.flatten(2).mean(2)).relu()))
        torch.testing.assert_close(gate(x), x * by_hand.view(2, 8, *(1,) * dims))

    def test_channel_attention(self, dims):
        gate, x = EfficientChannelAttention(8), torch.randn(2, 8, *(4,) * dims)
        assert gate.gate(x).shape == (2, 8, *(1,) * dims)
        assert gate(x).shape == x.shape

    def test_affine(self, dims):
        affine, x = randomized(ChannelAffine(3)), torch.randn(2, 3, *(4,) * dims)
        expected = torch.stack([affine.gain[c] * x[:, c] + affine.bias[c] for c in range(3)], 1)
        torch.testing.assert_close(affine(x), expected)

    def test_stochastic_depth(self, dims):
        x = torch.ones(64, 3, *(2,) * dims)
        out = StochasticDepth(0.5)(x).flatten(1)
        assert set(out.unique().tolist()) == {0.0, 1.0}
        assert bool((out == out[:, :1]).all())

    @pytest.mark.parametrize("side", [6, 7])
    def test_pooling_has_the_places_of_a_dimension_less(self, dims, side):
        x = torch.randn(2, 3, *(side,) * dims)
        for pool in (MaxPoolSame, AvgPoolSame):
            out = pool(dims=dims)(x)
            assert out.shape == (2, 3, *(-(-side // 2),) * dims)
            if dims > 1:  # along a line that does not change on the other axes, it is the 1-D pooling
                line = x[(..., *(slice(0, 1),) * (dims - 1))]
                flat = pool(dims=1)(line.flatten(2))
                wide = pool(dims=dims)(line.expand(2, 3, *(side,) * dims))
                torch.testing.assert_close(wide[(..., *(0,) * (dims - 1))], flat)
        if side == 7:
            return
        sparse = AvgPoolSame(dilation=1, dims=dims)(x)[(..., *(slice(None, None, 2),) * dims)]
        torch.testing.assert_close(sparse, AvgPoolSame(dims=dims)(x))


def test_other_dimensions_are_refused():
    with pytest.raises(UsageError, match=r"dims \(=4\) must be 1, 2 or 3"):
        MaxPoolSame(dims=4)


def test_roles_need_not_be_told():
    model = nn.Sequential(WSConv1d(3, 4, 3), WSConv3d(3, 4, 3), WSLinear(4, 2))
    kinds = {name: role.value for name, role in parameter_roles(model).items()}
    assert kinds == {f"{i}.{kind}": kind for i in range(3) for kind in ("weight", "gain", "bias")}


@pytest.mark.parametrize("dims", [1, 3])
def test_gradients_of_each_example(dims):
    model = nn.Sequential(
        CONVS[dims](2, 4, 3, stride=2),
        ScaledActivation("relu"),
        CONVS[dims](4, 3, 3),
        nn.Flatten(),
        WSLinear(3 * 2**dims, 2),
    )
    randomized(model).double()
    x, labels = torch.randn(3, 2, *(4,) * dims, dtype=DOUBLE), torch.tensor([0, 1, 0])
    passes = ExamplePasses(model, [x])
    passes.seed(lambda output: F.cross_entropy(output, labels))
    squares = passes.squared_norms()
    for i in range(3):
        loss = F.cross_entropy(model(x[i : i + 1]), labels[i : i + 1])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        for name, gradient in zip(dict(model.named_parameters()), gradients, strict=True):
            assert squares[name][i].item() == pytest.approx(gradient.square().sum().item(), rel=1e-9, abs=1e-18), name


def test_concatenation_has_mean_square_1_and_the_shares_asked_for():
    maps = [torch.randn(4, 16, 50, 50), 3 * torch.randn(4, 48, 50, 50)]
    cat = ScaledConcat([16, 48], variances=[1.0, 9.0], shares=[1.0, 3.0])
    out = cat(*maps)
    assert out.square().mean().item() == pytest.approx(1.0, abs=0.02)
    assert out[:, :16].square().sum().div(out.square().sum()).item() == pytest.approx(0.25, abs=0.01)
    equal = ScaledConcat([16, 48], variances=[1.0, 9.0])(*maps)
    assert equal[:, :16].square().sum().div(equal.square().sum()).item() == pytest.approx(0.5, abs=0.01)
    assert math.isclose(ScaledConcat([16, 48]).scales[0], math.sqrt(2))
    with pytest.raises(UsageError, match=r"maps of \(48, 16\) channels"):
        cat(*maps[::-1])
