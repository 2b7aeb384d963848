"""SameConv2d, the control beside WSConv2d: the raw weight, padded as TensorFlow does."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from normfree import UsageError
from normfree.nn import Role, SameConv2d, WSConv2d, parameter_roles

DOUBLE = torch.float64
CLOSE = dict(rtol=1e-11, atol=1e-12)  # float64 rounding of sums in another order


def conv(*args, **options) -> SameConv2d:
    """In float64, the bias away from 0."""
    layer = SameConv2d(*args, **options, dtype=DOUBLE)
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    return layer


def tensorflow_conv(x, layer):
    """tf.nn.convolution(padding="SAME"), written down from its documentation."""
    k, s, d = layer.kernel_size, layer.stride, layer.dilation
    pads = []
    for size in reversed(x.shape[2:]):  # F.pad begins with the last dimension
        extent = (k - 1) * d + 1
        total = max(extent - s, 0) if size % s == 0 else max(extent - size % s, 0)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), layer.weight, layer.bias, s, 0, d, layer.groups)


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (9, 8), (1, 6), (5, 12)])
@pytest.mark.parametrize(
    ("kernel_size", "stride", "dilation", "groups"),
    [(1, 1, 1, 1), (1, 2, 1, 2), (3, 1, 1, 2), (3, 2, 1, 1), (7, 2, 1, 1), (2, 1, 1, 1), (3, 3, 2, 2), (5, 3, 1, 1)],
)
def test_convolves_the_raw_weight_with_tensorflows_padding(kernel_size, stride, dilation, groups, size):
    layer = conv(4, 6, kernel_size, stride, dilation=dilation, groups=groups)
    x = torch.randn(2, 4, *size, dtype=DOUBLE)
    out = layer(x)
    assert out.shape == (2, 6, *(-(-n // stride) for n in size))
    torch.testing.assert_close(out, tensorflow_conv(x, layer), **CLOSE)


@pytest.mark.parametrize("padding", [0, 2])
def test_integer_padding_is_torchs(padding):
    layer, x = conv(4, 6, 3, 2, padding, 2, 2), torch.randn(2, 4, 9, 10, dtype=DOUBLE)
    assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, 2, padding, 2, 2))


def test_without_constants_the_weight_is_not_copied():
    layer = SameConv2d(4, 6, 3)
    assert layer.effective_weight() is layer.weight


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("input_scale", [1.0, math.sqrt(2) / 1.04])
def test_constants_are_folded_into_weight_and_bias(bias, input_scale):
    layer, x = conv(4, 6, 3, 2, bias=bias, input_scale=input_scale), torch.randn(2, 4, 8, 8, dtype=DOUBLE)
    scale = torch.tensor([0.2 * 0.7], dtype=DOUBLE, requires_grad=True)
    expected = tensorflow_conv(input_scale * x, layer)
    torch.testing.assert_close(layer(x), expected, **CLOSE)
    out = layer(x, scale)
    torch.testing.assert_close(out, expected * scale, **CLOSE)
    torch.testing.assert_close(layer.effective_weight(scale), layer.weight * input_scale * scale, **CLOSE)
    upstream = torch.randn_like(out)
    inputs = [scale, *layer.parameters()]
    got = torch.autograd.grad(out, inputs, upstream)
    torch.testing.assert_close(got, torch.autograd.grad(expected * scale, inputs, upstream), **CLOSE)


@pytest.mark.parametrize("init_gain", [1.0, math.sqrt(2)])
@pytest.mark.parametrize("groups", [1, 4])
def test_initial_weights_have_variance_init_gain_squared_over_fan_in(init_gain, groups):
    layer = SameConv2d(64, 1024, 3, groups=groups, init_gain=init_gain)
    # 147,456 weights at least: the standard error of their variance is 0.4 %, five of them
    assert layer.weight.var().item() * 576 / groups == pytest.approx(init_gain**2, rel=0.02)
    assert layer.weight.mean().abs() < 5 * layer.weight.std() / layer.weight.numel() ** 0.5
    assert not layer.bias.any()


def test_reset_parameters_begins_again():
    layer = SameConv2d(8, 64, 3, init_gain=3.0)
    torch.nn.init.constant_(layer.weight, 7.0)
    torch.nn.init.constant_(layer.bias, 7.0)
    layer.reset_parameters()
    assert layer.weight.var().item() * 72 == pytest.approx(9, rel=0.11)  # 4,608 weights: five standard errors of 2.1 %
    assert not layer.bias.any()


def test_parameters_and_roles():
    layer = SameConv2d(4, 6, 3, groups=2)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == dict(weight=(6, 2, 3, 3), bias=(6,))
    assert parameter_roles(layer) == dict(weight=Role.WEIGHT, bias=Role.BIAS)
    assert [name for name, _ in SameConv2d(4, 6, 3, bias=False).named_parameters()] == ["weight"]


def test_with_a_standardized_weight_it_is_wsconv2d():
    standardized, x = WSConv2d(4, 6, 3, 2, input_scale=1.3, dtype=DOUBLE), torch.randn(2, 4, 7, 8, dtype=DOUBLE)
    raw = conv(4, 6, 3, 2)
    with torch.no_grad():
        raw.weight.copy_(standardized.standardized_weight())
        raw.bias.copy_(standardized.bias)
    assert not torch.allclose(raw.weight, standardized.weight)
    torch.testing.assert_close(raw(x), standardized(x), **CLOSE)


def test_device_and_dtype():
    layer = SameConv2d(4, 6, 3, 2, input_scale=2.0, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.bfloat16)}
    out = layer(torch.empty(2, 4, 7, 7, device="meta", dtype=torch.bfloat16))
    assert (out.shape, out.dtype) == ((2, 6, 4, 4), torch.bfloat16)


@pytest.mark.parametrize(
    ("options", "quoted"),
    [
        (dict(in_channels=0), r"in_channels \(=0\)"),
        (dict(kernel_size=(3, 3, 3)), r"kernel_size \(=\(3, 3, 3\)\)"),
        (dict(stride=1.5), r"stride \(=1.5\)"),
        (dict(groups=5), r"in_channels \(=48\) must be divisible by groups \(=5\)"),
        (dict(groups=16), r"out_channels \(=40\) must be divisible by groups \(=16\)"),
        (dict(padding="valid"), r"padding \(='valid'\)"),
        (dict(padding=False), r"padding \(=False\)"),
        (dict(init_gain=float("inf")), r"init_gain \(=inf\) must be a finite number"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_quoted(options, quoted):
    with pytest.raises(UsageError, match=quoted):
        SameConv2d(**dict(in_channels=48, out_channels=40, kernel_size=3) | options)


def test_repr_tells_what_differs_from_the_default():
    assert repr(SameConv2d(4, 6, 3, 2)) == "SameConv2d(4, 6, kernel_size=3, stride=2, padding='same')"
    text = repr(SameConv2d(4, 6, 3, padding=1, groups=2, bias=False, input_scale=1.5))
    assert all(part in text for part in ("padding=1", "groups=2", "input_scale=1.5", "bias=False"))


@pytest.mark.parametrize("kind", [SameConv2d, WSConv2d])
@pytest.mark.parametrize(("channels", "outputs"), [(2, 2), (16, 16), (24, 32), (32, 64)])
@pytest.mark.parametrize("kernel_size", [3, 7])
def test_gradients_in_bfloat16_on_a_map_of_one_pixel(kind, channels, outputs, kernel_size):
    """oneDNN's own is what lay in memory before, in some of the calls."""
    for seed in range(20):
        torch.manual_seed(seed)
        conv, x = kind(channels, outputs, kernel_size, stride=2), torch.randn(2, channels, 1, 1)
        exact = copy.deepcopy(conv).double()
        exact(x.double()).sum().backward()
        for layout in (torch.contiguous_format, torch.channels_last):
            conv.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                out = conv(x.contiguous(memory_format=layout))
            out.float().sum().backward()
            assert out.shape == (2, outputs, 1, 1)
            expected = exact.weight.grad
            # bfloat16 has 8 bits: products of rounded factors differ by some 2**-7
            assert (conv.weight.grad - expected).norm() <= 0.03 * expected.norm()
