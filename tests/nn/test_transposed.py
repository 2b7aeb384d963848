"""Transposed convolutions: their layout, padding, variance, and units."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normfree
from normfree.errors import UsageError
from normfree.functional import standardize_transposed, standardize_weight, swap_channels
from normfree.models import count_macs
from normfree.nn import (
    SameConv1d,
    SameConv2d,
    SameConv3d,
    ScaledActivation,
    WSConvTranspose1d,
    WSConvTranspose2d,
    WSConvTranspose3d,
)
from normfree.optim import AGC, FusedStep, agc_, param_groups
from normfree.private import ExamplePasses

DOUBLE = torch.float64
CLOSE = dict(rtol=1e-11, atol=1e-11)
KINDS = {1: WSConvTranspose1d, 2: WSConvTranspose2d, 3: WSConvTranspose3d}
SAME = {1: SameConv1d, 2: SameConv2d, 3: SameConv3d}
PLAIN = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
CASES = {
    "twice": dict(kernel_size=2, stride=2),
    "overlapping": dict(kernel_size=4, stride=2),
    "odd": dict(kernel_size=3, stride=2),
    "not strided": dict(kernel_size=3),
    "grouped": dict(kernel_size=4, stride=2, groups=2),
    "dilated": dict(kernel_size=3, stride=2, dilation=3),
    "large stride": dict(kernel_size=2, stride=3),
    "symmetric": dict(kernel_size=3, stride=2, padding="symmetric"),
    "numbers": dict(kernel_size=4, stride=2, padding=1),
    "longer": dict(kernel_size=3, stride=2, padding=1, output_padding=1),
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def randomized(layer):
    with torch.no_grad():
        layer.gain.normal_().add_(1.0)
        layer.bias.normal_()
    return layer


def make(dims, case, **more):
    return randomized(KINDS[dims](4, 6, input_scale=1.3, dtype=DOUBLE, **CASES[case], **more))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_output_has_stride_times_the_places_and_folds_to_torchs_layer(dims, case):
    layer, x = make(dims, case), torch.randn(2, 4, *(5, 4, 3)[:dims], dtype=DOUBLE)
    out = layer(x)
    stride = CASES[case].get("stride", 1)
    assert out.shape == (2, 6, *(stride * size for size in x.shape[2:]))
    folded = normfree.fold(nn.Sequential(layer).eval())[0]
    assert isinstance(folded, PLAIN[dims])
    assert folded.weight.shape == PLAIN[dims](4, 6, layer.kernel_size, groups=layer.groups).weight.shape
    torch.testing.assert_close(folded(x), out, **CLOSE)
    scale = torch.tensor([0.3], dtype=DOUBLE)
    torch.testing.assert_close(layer(x, scale), 0.3 * out, **CLOSE)
    other = make(dims, case)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), out)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("case", [case for case in CASES if "padding" not in CASES[case]])
def test_same_padding_is_the_transposed_map_of_a_convolution(dims, case):
    """<conv(y), x> = <y, transposed(x)> with one weight, for TensorFlow's padding on both sides."""
    layer, options = make(dims, case), dict(CASES[case])
    x = torch.randn(1, 4, *(3,) * dims, dtype=DOUBLE)
    y = torch.randn(1, 6, *(3 * options.get("stride", 1),) * dims, dtype=DOUBLE)
    conv = SAME[dims](6, 4, **options, dtype=DOUBLE, bias=False)
    with torch.no_grad():
        conv.weight.copy_(swap_channels(layer.effective_weight(), layer.groups))
        layer.bias.zero_()
    torch.testing.assert_close((conv(y) * x).sum(), (layer(x) * y).sum(), **CLOSE)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_dimension_more_of_one_place_changes_nothing(groups):
    for dims in (1, 2):
        small = randomized(KINDS[dims](4, 6, 4, 2, groups=groups, dtype=DOUBLE))
        large = KINDS[dims + 1](4, 6, (1, *(4,) * dims), (1, *(2,) * dims), groups=groups, dtype=DOUBLE)
        large.load_state_dict(small.state_dict() | dict(weight=small.weight.detach().unsqueeze(2)))
        x = torch.randn(2, 4, *(5,) * dims, dtype=DOUBLE)
        torch.testing.assert_close(large(x.unsqueeze(2)).squeeze(2), small(x), **CLOSE)


@pytest.mark.parametrize("groups", [1, 2])
def test_stride_1_standardizes_units_over_their_fan_in(groups):
    layer = WSConvTranspose2d(4, 6, 3, groups=groups, dtype=DOUBLE)
    torch.testing.assert_close(layer.standardized_weight(), standardize_weight(layer.weight), **CLOSE)
    torch_layout = swap_channels(layer.weight, groups)  # a unit: an output channel, over in / groups * 9 weights
    assert torch_layout.shape == nn.ConvTranspose2d(4, 6, 3, groups=groups).weight.shape
    unit = torch_layout.unflatten(0, (groups, -1))[groups - 1, :, 1]
    torch.testing.assert_close(unit, layer.weight[(groups - 1) * 6 // groups + 1], **CLOSE)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("case", [case for case in CASES if case not in ("longer", "numbers", "not strided")])
def test_each_set_of_taps_is_standardized(dims, case):
    """Taps that reach the same places, found by brute force: mean 0 and one sum of squares, on average 1 a place."""
    layer = KINDS[dims](4, 6, dtype=DOUBLE, eps=0.0, **CASES[case])
    weight, stride = layer.standardized_weight(), layer.stride
    kernel, dilation = weight.shape[2], layer.dilation
    sets = {}
    for tap in itertools.product(range(kernel), repeat=dims):
        sets.setdefault(tuple(k * dilation % stride for k in tap), []).append(weight[(..., *tap)])
    sums = []
    for taps in sets.values():
        together = torch.stack(taps, -1).flatten(1)
        assert together.mean(1).abs().max() < 1e-12
        sums.append(together.square().sum(1))
    assert torch.stack(sums).std() < 1e-9
    torch.testing.assert_close(torch.stack(sums).sum(0) / stride**dims, torch.ones(6, dtype=DOUBLE), **CLOSE)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "geometry", [dict(kernel_size=2, stride=2), dict(kernel_size=3, stride=2), dict(kernel_size=4, stride=2)]
)
def test_the_variance_stays_1_behind_an_activation(dims, geometry):
    side = {1: 500, 2: 24, 3: 10}[dims]
    x = ScaledActivation("relu")(torch.randn(2, 64, *(side,) * dims))
    layer = KINDS[dims](64, 64, **geometry)
    inner = (..., *(slice(4, -4),) * dims)
    var = layer(x)[inner].movedim(1, 0).flatten(1).var(1).mean().item()
    assert var == pytest.approx(1.0, abs=0.1)
    whole = standardize_weight(layer.weight, scale=(2**dims) ** 0.5)  # each unit as a whole, and the factor
    out = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[dims](x, swap_channels(whole), stride=2)
    mean_square = x.mean((0, *range(2, x.ndim))).square().mean().item()
    grown = out[inner].movedim(1, 0).flatten(1).var(1).mean().item()
    assert grown == pytest.approx(1 + mean_square * (1 - 0.5**dims), abs=0.15)  # why it is not done


@pytest.mark.parametrize("case", ["odd", "grouped", "dilated", "large stride"])
@pytest.mark.parametrize("add_eps", [False, True])
def test_gradients_are_right(case, add_eps):
    layer = (
        randomized(WSConvTranspose1d(2, 2, dtype=DOUBLE, add_eps=add_eps, **CASES[case])) if case != "grouped" else None
    )
    layer = layer or randomized(WSConvTranspose2d(4, 2, dtype=DOUBLE, **CASES[case]))
    x = torch.randn(1, layer.in_channels, *(3,) * layer.dims, dtype=DOUBLE, requires_grad=True)
    names = ("weight", "gain", "bias")

    def function(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *(getattr(layer, name) for name in names)))


def test_half_types_are_standardized_in_float32():
    weight = torch.randn(6, 4, 2, 2)
    exact = standardize_transposed(weight.bfloat16().float(), stride=2).bfloat16()
    assert torch.equal(standardize_transposed(weight.bfloat16(), stride=2), exact)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_units_of_clipping_are_output_channels_in_both_layouts(dims, groups):
    ours, torchs = KINDS[dims](4, 6, 2, 2, groups=groups), PLAIN[dims](4, 6, 2, 2, groups=groups)
    with torch.no_grad():
        torchs.weight.copy_(swap_channels(ours.weight, groups))
    gradient = torch.randn_like(ours.weight)
    ours.weight.grad, torchs.weight.grad = gradient.clone(), swap_channels(gradient, groups).clone()
    statistics = []
    for layer in (ours, torchs):
        layer.bias.grad = torch.randn(6)
        statistics.append(agc_(param_groups(layer, clipping=0.01)))
    bound = 0.01 * ours.weight.detach().flatten(1).norm(dim=1)
    torch.testing.assert_close(ours.weight.grad.flatten(1).norm(dim=1), bound)
    torch.testing.assert_close(swap_channels(torchs.weight.grad, groups), ours.weight.grad)
    assert [s.fraction["weight"] for s in statistics] == [1.0, 1.0]
    assert [s.groups[0].counts for s in statistics] == [[6], [6]]


def test_torchs_layer_steps_without_the_fused_kernel():
    layer = nn.ConvTranspose2d(4, 6, 2, 2)
    groups = param_groups(layer, clipping=0.01)
    fused = FusedStep(torch.optim.SGD(groups, lr=0.1, momentum=0.9))
    layer(torch.randn(1, 4, 3, 3)).sum().backward()
    assert not fused.possible()
    with pytest.raises(UsageError, match="transposed convolutions have no fused step"):
        fused.step()
    whole = param_groups(layer, clipping=0.01, clipping_kind="layer")
    ours = param_groups(WSConvTranspose2d(4, 6, 2, 2), clipping=0.01)
    assert all("transposed" not in group for group in ours)
    agc = AGC(torch.optim.SGD(whole, lr=0.1))
    agc.step()
    assert layer.weight.grad.norm() <= 0.0101 * layer.weight.norm() + 1e-3


def test_multiply_adds_are_those_of_the_taps_that_are_used():
    """Each of 5 x 7 inputs meets 3 outputs' 2 x 2 kernels, of a quarter of which each output place is made."""
    for layer in (WSConvTranspose2d(4, 6, 2, 2, groups=2), nn.ConvTranspose2d(4, 6, 2, 2, groups=2)):
        assert count_macs(layer, (4, 5, 7)) == 4 * 5 * 7 * 3 * 4


def test_gradients_of_each_example_are_refused_by_name():
    model = nn.Sequential(WSConvTranspose2d(2, 3, 2, 2), nn.Flatten(), nn.Linear(3 * 16, 2))
    with pytest.raises(UsageError, match=r"0\.(weight|gain|bias).* meets? examples"):
        ExamplePasses(model, [torch.randn(2, 2, 2, 2)])


@pytest.mark.parametrize(
    ("options", "quoted"),
    [
        (dict(kernel_size=2, stride=2, groups=4), "places that one weight reaches"),
        (dict(kernel_size=3, stride=2, groups=4), "places that one weight reaches"),
        (dict(kernel_size=2, stride=2, output_padding=1), "output_padding .*needs padding in numbers"),
        (dict(kernel_size=2, stride=2, padding=0, output_padding=2), "must be below stride or dilation"),
        (dict(kernel_size=2, stride=(2, 2, 2)), r"stride \(=\(2, 2, 2\)\) must be one integer, or one for each of 2"),
    ],
    ids=["one tap", "one tap at corners", "named padding", "too long", "axes"],
)
def test_what_cannot_be_is_refused(options, quoted):
    with pytest.raises(UsageError, match=quoted):
        WSConvTranspose2d(4, 8, **options)


def test_repr_says_what_was_given():
    assert repr(WSConvTranspose2d(4, 8, 3, 2, "symmetric")).startswith(
        "WSConvTranspose2d(4, 8, kernel_size=3, stride=2, padding='symmetric'"
    )
    assert "output_padding=1" in repr(WSConvTranspose1d(4, 8, 3, 2, 1, output_padding=1))
