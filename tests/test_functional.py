"""The equations against their own statements, and against timm where its function is the same one."""

import math

import pytest
import torch
from timm.layers import ScaledStdConv2d

from normfree.functional import (
    clip_coefficient,
    expected_variances,
    residual_merge,
    same_padding,
    standardize_weight,
    survival_mask,
    unitwise_norm,
)

DOUBLE = torch.float64
SHAPES = [(5, 7), (6, 4, 3), (8, 4, 3, 3), (3, 1, 5, 5), (4, 2, 3, 3, 3)]


def unit_statistics(weight):
    flat = weight.double().flatten(1)
    return flat.mean(1), flat.var(1, correction=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (3.0, 0.5), (-0.2, 0.05)])
def test_mean_zero_and_variance_one_over_fan_in(shape, mean, std):
    weight = mean + std * torch.randn(shape, dtype=DOUBLE)
    got_mean, got_var = unit_statistics(standardize_weight(weight))
    fan_in = weight[0].numel()
    assert got_mean.abs().max() < 1e-13 * max(1, abs(mean) / std)  # float64 cancellation of the mean
    torch.testing.assert_close(got_var * fan_in, torch.ones(shape[0], dtype=DOUBLE), rtol=1e-12, atol=0)  # rounding


def test_float32_keeps_small_deviations_around_a_large_mean():
    weight = 10 + 0.1 * torch.randn(16, 8, 3, 3)
    got = standardize_weight(weight)
    expected = standardize_weight(weight.double())
    # a relative error of 2**-24 in the mean of 10 against deviations of 0.1, in units of the result's deviation
    assert (got - expected).abs().max() < 4 * 2**-24 * (10 / 0.1) * expected.std()


def test_lower_bound_is_a_maximum_not_a_sum():
    fan_in, eps = 36, 1e-4
    z = torch.randn(2, 4, 3, 3, dtype=DOUBLE)
    z = (z - z.mean((1, 2, 3), keepdim=True)) / z.var((1, 2, 3), correction=0, keepdim=True).sqrt()
    twice, half = (z * math.sqrt(c * eps / fan_in) for c in (2.0, 0.5))  # var * N is 2 eps and eps / 2
    one = torch.ones(2, dtype=DOUBLE)
    for weight, expected in ((twice, one), (half, one / 2)):  # a sum would give 2/3 and 1/3
        var = unit_statistics(standardize_weight(weight, eps=eps))[1]
        torch.testing.assert_close(var * fan_in, expected, rtol=1e-9, atol=0)  # float64 rounding


def test_default_eps_is_the_released_one():
    weight = 1e-4 * torch.randn(3, 4, 3, 3, dtype=DOUBLE)  # var * N = 3.6e-7
    centred = weight - weight.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(standardize_weight(weight), centred * 100, rtol=1e-9, atol=0)  # 1 / sqrt(1e-4); rounding


@pytest.mark.parametrize("value", [0.0, 1.0, -0.3])
def test_constant_weights_give_zero_and_finite_gradients(value):
    weight = torch.full((4, 2, 3, 3), value, dtype=DOUBLE, requires_grad=True)
    out = standardize_weight(weight)
    assert out.abs().max() < 1e-12  # rounding of the mean, times 1 / sqrt(eps) = 100
    out.square().sum().backward()
    assert weight.grad.isfinite().all()


def test_gain_and_scale_are_factors():
    weight, gain = torch.randn(6, 4, 3, 3, dtype=DOUBLE), torch.randn(6, dtype=DOUBLE)
    plain = standardize_weight(weight)
    expected = plain * gain[:, None, None, None]
    close = dict(rtol=1e-12, atol=1e-14)  # float64 rounding in another order
    torch.testing.assert_close(standardize_weight(weight, gain), expected, **close)
    torch.testing.assert_close(standardize_weight(weight, gain, scale=1.7), expected * 1.7, **close)
    scale = torch.tensor([1.7], dtype=DOUBLE)
    torch.testing.assert_close(standardize_weight(weight, scale=scale), plain * 1.7, **close)
    torch.testing.assert_close(standardize_weight(weight, gain, scale=0.0), expected * 0, **close)


@pytest.mark.parametrize(("factor", "offset"), [(2.0, 0.0), (0.3, 0.1), (5.0, -4.0)])
def test_invariant_to_positive_affine_changes(factor, offset):
    weight = torch.randn(5, 3, 3, 3, dtype=DOUBLE)
    got = standardize_weight(factor * weight + offset)
    torch.testing.assert_close(got, standardize_weight(weight), rtol=1e-11, atol=1e-12)  # cancellation of the offset


@pytest.mark.parametrize("groups", [1, 2])
def test_agrees_with_timm_where_eps_does_not_count(groups):
    gamma = 1.7
    peer = ScaledStdConv2d(4, 6, 3, padding=1, groups=groups, gamma=gamma, eps=1e-12).double()
    with torch.no_grad():
        peer.weight.normal_()
        peer.gain.normal_()
    x = torch.randn(2, 4, 9, 9, dtype=DOUBLE)
    weight = standardize_weight(peer.weight, peer.gain.flatten(), scale=gamma)
    got = torch.nn.functional.conv2d(x, weight, peer.bias, padding=1, groups=groups)
    torch.testing.assert_close(got, peer(x), rtol=1e-10, atol=1e-10)  # its 1e-12 is added to a variance near 1


@pytest.mark.parametrize("std", [1.0, 1e-4])  # above and below the bound
def test_gradients(std):
    weight = (std * torch.randn(3, 2, 3, 3, dtype=DOUBLE)).requires_grad_()
    gain, scale = (torch.randn(n, dtype=DOUBLE, requires_grad=True) for n in (3, 1))
    # the step must stay small beside the weights
    assert torch.autograd.gradcheck(
        lambda w, g, s: standardize_weight(w, g, scale=s), (weight, gain, scale), eps=1e-3 * std, rtol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_weights_are_standardized_in_float32(dtype):
    weight, gain = (0.3 + 0.01 * torch.randn(8, 16, 3, 3)).to(dtype), torch.randn(8).to(dtype)
    got = standardize_weight(weight, gain, scale=0.7)
    assert got.dtype is dtype
    assert torch.equal(got, standardize_weight(weight.float(), gain.float(), scale=0.7).to(dtype))


def test_expected_variances():
    assert expected_variances((1, 3, 2), alpha=0.5) == [[1.0], [1.25, 1.25, 1.5], [1.75, 1.25]]
    stages = expected_variances((3, 4, 6, 3))
    assert [len(stage) for stage in stages] == [3, 4, 6, 3]
    assert stages[2] == pytest.approx([1.16] + [1 + 0.04 * k for k in range(1, 6)], rel=1e-12)  # float64 rounding


@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "dilation", "expected"),
    [
        (224, 3, 2, 1, (0, 1)),
        (224, 7, 2, 1, (2, 3)),
        (75, 7, 2, 1, (3, 3)),
        (5, 1, 2, 1, (0, 0)),
        (8, 3, 1, 2, (2, 2)),
        (1, 3, 3, 1, (1, 1)),
        (7, 2, 2, 1, (0, 1)),
        (9, 1, 3, 1, (0, 0)),
        (4, 2, 1, 1, (0, 1)),
        (10, 3, 3, 1, (1, 1)),
    ],
)
def test_same_padding(size, kernel_size, stride, dilation, expected):
    assert same_padding(size, kernel_size, stride, dilation) == expected


@pytest.mark.parametrize("shape", [(3, 5, 1, 1), (3, 1, 1, 1), (1,)])
def test_residual_merge(shape):
    shortcut, branch = torch.randn(2, 3, 5, 4, 4, dtype=DOUBLE)
    gate = torch.randn(shape, dtype=DOUBLE)
    torch.testing.assert_close(residual_merge(shortcut, branch, gate), shortcut + gate * branch, rtol=1e-14, atol=1e-14)


def test_residual_merge_takes_a_float32_gate_for_bfloat16_maps():
    shortcut, branch = torch.randn(2, 3, 5, 4, 4).bfloat16()
    assert residual_merge(shortcut, branch, torch.rand(3, 5, 1, 1)).dtype is torch.bfloat16


@pytest.mark.parametrize("ndim", [1, 2, 4])
def test_survival_mask(ndim):
    x = torch.zeros(20_000, *(1,) * (ndim - 1), dtype=DOUBLE)
    mask = survival_mask(x, 0.3)
    assert mask.shape == x.shape
    assert mask.dtype is DOUBLE
    assert set(mask.unique().tolist()) == {0.0, 1.0}  # never rescaled
    assert abs(mask.mean() - 0.7) < 5 * math.sqrt(0.3 * 0.7 / 20_000)  # five standard errors
    assert survival_mask(x, 0.0).min() == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_unitwise_norm_of_matrices_and_kernels(shape):
    x = torch.randn(shape, dtype=DOUBLE)
    norm = unitwise_norm(x)
    assert norm.shape == (shape[0],) + (1,) * (len(shape) - 1)
    expected = torch.stack([row.square().sum().sqrt() for row in x])
    torch.testing.assert_close(norm.flatten(), expected, rtol=1e-14, atol=0)  # order of the sum


@pytest.mark.parametrize("shape", [(), (1,), (9,)])
def test_a_vector_is_one_unit(shape):
    x = torch.randn(shape, dtype=DOUBLE)
    assert unitwise_norm(x).numel() == 1
    assert unitwise_norm(x).item() == pytest.approx(x.square().sum().sqrt().item(), rel=1e-14)
    assert torch.broadcast_shapes(unitwise_norm(x).shape, x.shape) == x.shape


def test_clip_coefficient():
    param = torch.tensor([2.0, 2.0, 0.0, 0.0, 2.0, 2.0])
    grad = torch.tensor([0.1, 4.0, 1e-6, 0.5, 0.0, math.nan])
    got = clip_coefficient(param, grad, 0.1, eps=1e-3)
    expected = torch.tensor([1.0, 0.05, 1.0, 0.1 * 1e-3 / 0.5, 1.0, math.nan])
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0, equal_nan=True)  # float32 rounding


def test_a_unit_without_weight_or_gradient_is_not_clipped():
    assert clip_coefficient(torch.zeros(1), torch.zeros(1), 0.01).item() == 1.0
