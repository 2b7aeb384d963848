"""Squeeze-Excite's gate and its factor 2."""

import pytest
import torch

from normfree import UsageError
from normfree.nn import EfficientChannelAttention, SqueezeExcite

DOUBLE = torch.float64


def test_equals_its_formula():
    se, x = SqueezeExcite(6, 0.5).double(), torch.randn(3, 6, 5, 4, dtype=DOUBLE)
    with torch.no_grad():
        for parameter in se.parameters():
            parameter.normal_()
    hidden = (x.mean((2, 3)) @ se.fc0.weight.T + se.fc0.bias).clamp(min=0)
    gate = 2 / (1 + torch.exp(-(hidden @ se.fc1.weight.T + se.fc1.bias)))
    torch.testing.assert_close(se.gate(x), gate[:, :, None, None], rtol=1e-12, atol=0)  # float64 rounding
    torch.testing.assert_close(se(x), x * gate[:, :, None, None], rtol=1e-12, atol=0)


def test_identity_at_zero_weights():
    se, x = SqueezeExcite(4), torch.randn(2, 4, 3, 3)
    with torch.no_grad():
        for parameter in se.parameters():
            parameter.zero_()
    assert torch.equal(se(x), x)  # 2 * sigmoid(0) is 1 exactly


def test_half_without_the_factor():
    se, x = SqueezeExcite(4, factor=1.0), torch.randn(2, 4, 3, 3)
    with torch.no_grad():
        for parameter in se.parameters():
            parameter.zero_()
    assert torch.equal(se(x), x / 2)


def test_examples_and_places_share_nothing_but_the_channel_mean():
    se, x = SqueezeExcite(8).double(), torch.randn(3, 8, 4, 4, dtype=DOUBLE)
    order = torch.randperm(16)
    shuffled = x.flatten(2)[:, :, order].view_as(x)
    torch.testing.assert_close(se.gate(shuffled), se.gate(x), rtol=1e-12, atol=0)  # order of the mean's sum
    torch.testing.assert_close(se(x[1:2]), se(x)[1:2], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("channels", "ratio", "hidden"), [(8, 0.5, 4), (9, 0.5, 4), (16, 0.25, 4), (3, 0.25, 1), (1, 0.1, 1)]
)
def test_hidden_width_is_rounded_down(channels, ratio, hidden):
    se = SqueezeExcite(channels, ratio)
    assert tuple(se.fc0.weight.shape) == (hidden, channels)
    assert tuple(se.fc1.weight.shape) == (channels, hidden)


def test_initialization_is_haikus_default():
    se = SqueezeExcite(512, 0.5)
    for layer in (se.fc0, se.fc1):
        std = layer.in_features**-0.5
        assert not layer.bias.any()
        assert layer.weight.abs().max() <= 2 * std * (1 + 1e-6)  # float32 rounding
        # a normal cut at two deviations keeps 0.8796 of its deviation; 131,072 samples, five standard errors of 0.16 %
        assert layer.weight.std().item() == pytest.approx(0.87962566 * std, rel=0.008)


@pytest.mark.parametrize("ratio", [0.0, -0.5])
def test_bad_ratio_is_quoted(ratio):
    with pytest.raises(UsageError, match=rf"ratio \(={ratio}\)"):
        SqueezeExcite(8, ratio)


@pytest.mark.parametrize(
    ("arguments", "quoted"),
    [
        (dict(channels=0), r"channels \(=0\) must be an integer of at least 1"),
        (dict(hidden=0), r"hidden \(=0\) must be an integer of at least 1"),
        (dict(hidden=-1), r"hidden \(=-1\) must be"),
        (dict(hidden=2.5), r"hidden \(=2.5\) must be"),
        (dict(ratio=float("nan")), r"ratio \(=nan\) must be a finite number"),
        (dict(ratio=float("inf")), r"ratio \(=inf\) must be a finite number"),
        (dict(factor=float("nan")), r"factor \(=nan\) must be a finite number"),
    ],
)
def test_bad_arguments_are_quoted(arguments, quoted):
    with pytest.raises(UsageError, match=quoted):
        SqueezeExcite(**dict(channels=8) | arguments)


@pytest.mark.parametrize("arguments", [dict(channels=0), dict(channels=8, factor=float("nan"))])
def test_bad_arguments_of_channel_attention(arguments):
    with pytest.raises(UsageError, match=r"\(=(0|nan)\) must be"):
        EfficientChannelAttention(**arguments)
