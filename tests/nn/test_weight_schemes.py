"""Weight schemes: the functions against independent references, the layers against the functions."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import normfree
from normfree import UsageError
from normfree.functional import normalize_weight, pull_weight, standardize_weight
from normfree.nn import (
    DecoupledWSConv2d,
    GainConv2d,
    PaddedConv2d,
    Role,
    SoftWSConv2d,
    WNConv2d,
    WSConv2d,
    parameter_roles,
    recompute_weights,
)

DOUBLE = torch.float64
SHAPES = [(5, 7), (6, 4, 3), (8, 4, 3, 3), (3, 1, 5, 5)]
LAYERS = [WNConv2d, DecoupledWSConv2d, SoftWSConv2d]
CLOSE = dict(rtol=1e-11, atol=1e-12)  # float64 rounding


def layer_of(kind, *args, **options):
    """With gain, bias and, of decoupled layers, weights away from what an update leaves."""
    layer = kind(*args, **{"dtype": DOUBLE, **options})
    for parameter in layer.parameters():
        nn.init.normal_(parameter, mean=0.3)
    return layer


def standardized_by_hand(weight, gain=None):
    """Of each unit, element by element."""
    rows = []
    for unit in weight.double().flatten(1).tolist():
        mean = sum(unit) / len(unit)
        norm = math.sqrt(sum((w - mean) ** 2 for w in unit))
        rows.append([(w - mean) / norm for w in unit])
    out = torch.tensor(rows, dtype=DOUBLE).view(weight.shape)
    return out if gain is None else out * gain.view(-1, *(1,) * (weight.ndim - 1))


# Functions


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_normalized_weights_are_those_of_torchs_weight_norm(shape, dtype):
    module = nn.Module()
    module.weight = nn.Parameter(0.2 + torch.randn(shape, dtype=dtype))
    module = weight_norm(module, dim=0)
    norm, direction = module.parametrizations.weight.original0, module.parametrizations.weight.original1
    with torch.no_grad():
        norm.normal_()
    got = normalize_weight(direction, norm.flatten())
    torch.testing.assert_close(got, module.weight, rtol=0, atol=1e-6)
    upstream = torch.randn_like(got)
    for ours, theirs in zip(
        torch.autograd.grad(got, (direction, norm), upstream),
        torch.autograd.grad(module.weight, (direction, norm), upstream),
        strict=True,
    ):
        # relative to the largest: sums over up to 36 products in float32
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * max(1.0, theirs.abs().max().item()))


def test_normalized_weights_keep_the_variance_around_0():
    weight = 1.5 + torch.randn(6, 4, 3, 3, dtype=DOUBLE)
    torch.testing.assert_close(normalize_weight(weight).square().sum((1, 2, 3)), torch.ones(6, dtype=DOUBLE), **CLOSE)
    centred = weight - weight.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(normalize_weight(centred), standardize_weight(weight), **CLOSE)
    torch.testing.assert_close(normalize_weight(weight, scale=1.7), 1.7 * normalize_weight(weight), **CLOSE)
    torch.testing.assert_close(normalize_weight(3 * weight), normalize_weight(weight), **CLOSE)


def test_a_weight_of_zeros_stays_zero_with_finite_gradients():
    weight = torch.zeros(2, 5, requires_grad=True)
    out = normalize_weight(weight)
    assert not out.any()
    out.sum().backward()
    assert torch.equal(weight.grad, torch.full((2, 5), 100.0))  # 1 / sqrt(1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_weights_are_normalized_in_float32(dtype):
    weight, gain = (0.3 + 0.01 * torch.randn(8, 16, 3, 3)).to(dtype), torch.randn(8).to(dtype)
    got = normalize_weight(weight, gain, scale=0.7)
    assert got.dtype is dtype
    assert torch.equal(got, normalize_weight(weight.float(), gain.float(), scale=0.7).to(dtype))


@pytest.mark.parametrize("std", [1.0, 1e-4])  # above and below the bound
def test_gradients_of_normalize_weight(std):
    weight = (std * torch.randn(3, 2, 3, 3, dtype=DOUBLE)).requires_grad_()
    gain, scale = (torch.randn(n, dtype=DOUBLE, requires_grad=True) for n in (3, 1))
    # the step must stay small beside the weights
    assert torch.autograd.gradcheck(
        lambda w, g, s: normalize_weight(w, g, scale=s), (weight, gain, scale), eps=1e-3 * std, rtol=1e-4
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_a_pull_moves_a_weight_towards_its_standardized_one(shape, strength):
    weight = 0.2 + torch.randn(shape, dtype=DOUBLE)
    expected = weight - strength * (weight - standardized_by_hand(weight))
    torch.testing.assert_close(pull_weight(weight, strength), expected, **CLOSE)
    torch.testing.assert_close(pull_weight(weight.float(), strength).double(), expected, rtol=0, atol=1e-6)


def test_pulls_end_at_the_standardized_weight_which_stays():
    weight = 0.2 + torch.randn(4, 9, dtype=DOUBLE)
    target = standardize_weight(weight)
    torch.testing.assert_close(pull_weight(target), target, **CLOSE)
    for _ in range(60):
        weight = pull_weight(weight, 0.5)
    # what is left halves with each; the standardized weight of a weight on the way is the same
    torch.testing.assert_close(weight, target, **CLOSE)


def test_gradients_of_pull_weight():
    weight = torch.randn(3, 2, 3, 3, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: pull_weight(w, 0.4), (weight,), eps=1e-5, rtol=1e-4)


# Layers


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("groups", [1, 2])
def test_layers_are_their_equations(kind, groups):
    layer = layer_of(kind, 4, 6, 3, groups=groups, input_scale=1.3)
    x, scale = torch.randn(2, 4, 7, 7, dtype=DOUBLE), torch.tensor([0.4], dtype=DOUBLE)
    weight = layer.weight * layer.gain.view(-1, 1, 1, 1)
    if kind is WNConv2d:
        weight = weight / layer.weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    expected = F.conv2d(1.3 * x, weight, layer.bias, padding=1, groups=groups)
    torch.testing.assert_close(layer(x), expected, **CLOSE)
    torch.testing.assert_close(layer(x, scale), 0.4 * expected, **CLOSE)
    torch.testing.assert_close(layer.effective_weight(scale), 0.4 * 1.3 * weight, **CLOSE)


@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_of_layers(kind):
    layer = layer_of(kind, 2, 3, 3, 2, input_scale=1.3)
    names = [name for name, _ in layer.named_parameters()]

    def output(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    x = torch.randn(1, 2, 5, 5, dtype=DOUBLE, requires_grad=True)
    inputs = (x, *(p.detach().clone().requires_grad_() for p in layer.parameters()))
    assert torch.autograd.gradcheck(output, inputs, eps=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("options", [{}, dict(gain=False), dict(bias=False), dict(gain=False, bias=False)], ids=str)
def test_parameters_and_roles(kind, options):
    layer = kind(4, 6, 3, **options)
    expected = dict(weight=Role.WEIGHT, gain=Role.GAIN, bias=Role.BIAS)
    expected = {name: role for name, role in expected.items() if options.get(name, True)}
    assert parameter_roles(layer) == expected
    assert layer(torch.randn(1, 4, 5, 5)).shape == (1, 6, 5, 5)
    assert ("gain=False" in repr(layer)) == ("gain" not in expected)


@pytest.mark.parametrize("kind", [DecoupledWSConv2d, SoftWSConv2d])
def test_decoupled_layers_start_standardized(kind):
    torch.manual_seed(0)
    layer = kind(4, 6, 3)
    torch.manual_seed(0)
    torch.testing.assert_close(layer.weight.double(), standardized_by_hand(WSConv2d(4, 6, 3).weight), rtol=0, atol=1e-6)
    nn.init.constant_(layer.gain, 3.0)
    nn.init.normal_(layer.weight, mean=3.0)
    layer.reset_parameters()
    assert torch.equal(layer.gain, torch.ones(6))
    assert layer.weight.mean((1, 2, 3)).abs().max() < 1e-6
    meta = kind(4, 6, 3, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in meta.parameters()} == {("meta", torch.bfloat16)}


def test_the_function_of_a_standardized_layer_carries_over():
    layer, decoupled = layer_of(WSConv2d, 4, 6, 3), DecoupledWSConv2d(4, 6, 3, dtype=DOUBLE)
    decoupled.load_state_dict(layer.state_dict())
    decoupled.standardize_()
    x = torch.randn(2, 4, 5, 5, dtype=DOUBLE)
    torch.testing.assert_close(decoupled(x), layer(x), **CLOSE)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("stride", [1, 2])
def test_layers_fold(kind, stride):
    layer = layer_of(kind, 4, 6, 3, stride, input_scale=1.3).eval()
    folded, x = normfree.fold(layer), torch.randn(2, 4, 8, 8, dtype=DOUBLE)
    assert (type(folded) is PaddedConv2d) == (stride == 2)
    torch.testing.assert_close(folded(x), layer(x), **CLOSE)
    assert folded.weight.data_ptr() != layer.weight.data_ptr()


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("bfloat16", [False, True])
def test_weights_computed_again_give_the_same_gradients(kind, bfloat16):
    layer, x = layer_of(kind, 4, 6, 3, dtype=torch.float32), torch.randn(2, 4, 8, 8)

    def gradients():
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            out = layer(x)
        assert out.dtype is (torch.bfloat16 if bfloat16 else torch.float32)
        out.float().square().sum().backward()
        return [p.grad for p in layer.parameters()]

    expected = gradients()
    recompute_weights(layer)
    torch.testing.assert_close(gradients(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_compile(kind):
    layer, x = layer_of(kind, 4, 6, 3, dtype=torch.float32), torch.randn(2, 4, 8, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))


def test_a_fan_in_of_1_is_refused_where_the_mean_is_subtracted():
    for kind in (WSConv2d, DecoupledWSConv2d, SoftWSConv2d):
        with pytest.raises(UsageError, match="is one weight per output, which standardization makes 0"):
            kind(4, 4, 1, groups=4)
    for kind in (WNConv2d, GainConv2d):
        assert kind(4, 4, 1, groups=4)(torch.randn(1, 4, 2, 2)).isfinite().all()
    with pytest.raises(UsageError, match=r"eps \(=-1\) must be at least 0"):
        WNConv2d(4, 4, 1, eps=-1)
