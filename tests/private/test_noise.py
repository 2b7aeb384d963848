"""Noise: its distribution, from a seed or from the system."""

import math
import os

import torch
from scipy.stats import kstest

from normfree.private import add_noise_, noise, secure_normal

COUNT = 200_000


def check_normal(x: torch.Tensor, std: float) -> None:
    """Moments within five standard errors, and the Kolmogorov-Smirnov distance."""
    x, n = x.double() / std, len(x)
    assert abs(x.mean().item()) < 5 / math.sqrt(n)
    assert abs(x.var().item() - 1) < 5 * math.sqrt(2 / n)
    assert abs((x**4).mean().item() - 3) < 5 * math.sqrt(96 / n)
    assert kstest(x.numpy(), "norm").statistic < 2.2 / math.sqrt(n)  # one time in ten thousand


def test_secure_numbers_are_normal_and_never_the_same():
    x = secure_normal(COUNT)
    assert (x.dtype, x.shape) == (torch.float64, (COUNT,))
    check_normal(x, 1.0)
    neighbours = (x[:-1] * x[1:]).mean().item()
    halves = (x[: COUNT // 2] * x[COUNT // 2 :]).mean().item()
    assert abs(neighbours) < 5 / math.sqrt(COUNT)
    assert abs(halves) < 5 / math.sqrt(COUNT / 2)
    torch.manual_seed(0)
    assert not torch.equal(x[:100], secure_normal(COUNT)[:100])


def test_secure_numbers_come_from_the_system_alone(monkeypatch):
    monkeypatch.setattr(os, "urandom", lambda count: bytes(range(256)) * (count // 256) + bytes(range(count % 256)))
    torch.manual_seed(0)
    first = secure_normal(1000)
    torch.manual_seed(1)
    assert torch.equal(first, secure_normal(1000))
    for byte in (b"\0", b"\xff"):  # the ends of the uniform numbers
        monkeypatch.setattr(os, "urandom", lambda count, byte=byte: byte * count)
        assert secure_normal(8).isfinite().all()


def test_more_numbers_than_are_drawn_at_once(monkeypatch):
    monkeypatch.setattr(noise, "_AT_ONCE", 1000)
    x = secure_normal(20_500)
    assert len(x.unique()) == len(x)
    check_normal(x, 1.0)
    assert secure_normal(0).shape == (0,)


def test_noise_from_a_seed():
    def noisy(seed, dtype=torch.float32):
        tensors = [torch.zeros(COUNT, dtype=dtype), torch.zeros(300, 100, dtype=dtype)]
        add_noise_(tensors, 0.25, seed)
        return tensors

    first, second = noisy(1)
    check_normal(first, 0.25)
    check_normal(second.flatten(), 0.25)
    assert not torch.equal(first[:30_000], second.flatten())  # each tensor has its own
    assert all(torch.equal(a, b) for a, b in zip(noisy(1), [first, second], strict=True))
    assert not torch.equal(noisy(2)[0], first)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    noisy(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_secure_noise_is_added():
    x = torch.full((COUNT,), 100.0)
    add_noise_([x], 0.5, None)
    check_normal(x.double() - 100, 0.5)
