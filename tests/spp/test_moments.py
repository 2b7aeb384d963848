"""Moments against numpy's in float64: every layout, size of signal and dtype."""

import numpy as np
import pytest
import torch
from spp.hand_made import statistics

from normfree.spp import moments
from normfree.spp.moments import Moments, Products, channel_moments, image_moments

SHAPES = [((3, 5, 4, 6), 1), ((3, 4, 6, 5), -1), ((3, 4, 5), -1), ((3, 4, 5), 2), ((3, 5, 7), 1), ((6, 5), 1)]


def check(got: Moments, x: torch.Tensor, dim: int, rtol: float):
    a = np.moveaxis(x.double().numpy(), dim, -1).reshape(-1, x.shape[dim])
    np.testing.assert_allclose(got.mean, a.mean(0), rtol=rtol, atol=rtol * np.abs(a).max())
    np.testing.assert_allclose(got.var, a.var(0), rtol=rtol)
    np.testing.assert_allclose((got.avg_sq_mean, got.avg_var), statistics(x, dim), rtol=rtol)
    assert got.mean.dtype == got.var.dtype == torch.float64


@pytest.mark.parametrize(("shape", "dim"), SHAPES)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-6), (torch.float64, 1e-13), (torch.bfloat16, 1e-6)])
def test_channel_moments(shape, dim, dtype, rtol):  # rtol: float32 sums; the bfloat16 values are exact in it
    x = (torch.randn(shape) + 1).to(dtype)
    check(channel_moments(x, dim), x, dim, rtol)


@pytest.mark.parametrize("make", [lambda x: x.to(memory_format=torch.channels_last), lambda x: x[:, :, ::2, 1:]])
def test_memory_order_does_not_matter(make):
    x = make(torch.randn(3, 5, 8, 6))
    assert not x.is_contiguous()
    check(channel_moments(x, 1), x, 1, 1e-6)


@pytest.mark.parametrize("scale", [1e25, 1e-25, 1e18, 1e-18])
@pytest.mark.parametrize(("shape", "dim"), SHAPES)
def test_signals_whose_squares_leave_float32(scale, shape, dim):
    x = torch.randn(shape) * scale
    got = channel_moments(x, dim)
    np.testing.assert_allclose((got.avg_sq_mean, got.avg_var), statistics(x, dim), rtol=1e-5)


def test_a_large_mean_does_not_eat_the_variance():
    x = torch.randn(4, 3, 16, 16) + 1e4
    # x itself is rounded to 1e-3; what is measured is the rounded tensor
    np.testing.assert_allclose(channel_moments(x, 1).avg_var, statistics(x)[1], rtol=1e-4)


def test_a_constant_has_no_variance():
    got = channel_moments(torch.full((2, 3, 4, 4), 3.0), 1)
    assert got.avg_var == 0.0
    assert got.avg_sq_mean == 9.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_stays_in_its_channel(value):
    x = torch.randn(2, 3, 4, 4)
    x[0, 1, 2, 2] = value
    got = channel_moments(x, 1)
    assert torch.isfinite(got.var).tolist() == [True, False, True]
    assert np.isnan(got.avg_var)


def test_image_moments_and_the_law_of_total_variance():
    x = torch.randn(4, 3, 5, 5) + torch.randn(4, 3, 1, 1)
    each = image_moments(x)
    np.testing.assert_allclose(each.mean, x.double().mean((2, 3)), atol=1e-7)
    np.testing.assert_allclose(each.var, x.double().var((2, 3), correction=0), rtol=1e-6)
    check(each.pooled(), x, 1, 1e-6)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 1, 1), (4, 1, 1, 1), (4, 3, 1, 1), (1, 1, 5, 5), (4, 3, 5, 5)])
@pytest.mark.parametrize("dim", [1, -1])
def test_products_are_those_of_the_tensors(shape, dim):
    x = torch.randn(4, 3, 5, 5) if dim == 1 or shape != (3,) else torch.randn(4, 5, 5, 3)
    if dim == 1 and shape == (3,):
        x = torch.randn(4, 5, 6, 3)  # along the last dimension, not the channels
    factor = torch.randn(shape)
    check(Products(x, dim)(factor), x * factor, dim, 1e-5)


def test_products_of_small_factors_take_no_memory(monkeypatch):
    x = torch.randn(4, 3, 5, 5)
    products = Products(x, 1)
    assert products.one is products(None)
    sizes = []
    measure = moments._mean_var
    monkeypatch.setattr(moments, "_mean_var", lambda y: sizes.append(y.data_ptr()) or measure(y))
    products(torch.randn(4, 3, 1, 1))
    products(torch.randn(3, 1, 1))
    assert sizes == [x.data_ptr()]  # read once, in place


def test_moments_times_a_factor_per_channel():
    x, factor = torch.randn(4, 3, 5, 5), torch.tensor([2.0, 0.0, -1.0])
    check(channel_moments(x, 1).times(factor), x * factor.view(3, 1, 1), 1, 1e-6)


def test_without_batch_norms_operator(monkeypatch):
    def absent(*_):
        raise NotImplementedError

    x = torch.randn(3, 5, 4, 4)
    monkeypatch.setattr(torch, "batch_norm_update_stats", absent)
    check(channel_moments(x, 1), x, 1, 1e-6)
