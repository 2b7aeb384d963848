"""WSConv2d: padding against TensorFlow's rule, folding against the unfolded product."""

import math

import pytest
import torch
import torch.nn.functional as F

from normfree import UsageError
from normfree.functional import standardize_weight
from normfree.nn import Activation, Role, WSConv2d, activated

DOUBLE = torch.float64
CLOSE = dict(rtol=1e-11, atol=1e-12)  # float64 rounding of sums in another order


def conv(*args, **options) -> WSConv2d:
    """In float64, gain and bias away from 1 and 0."""
    layer = WSConv2d(*args, **options, dtype=DOUBLE)
    with torch.no_grad():
        for vector in (layer.gain, layer.bias):
            if vector is not None:
                vector.normal_()
    return layer


def tensorflow_conv(x, layer):
    """tf.nn.convolution(padding="SAME"), written down from its documentation."""
    k, s, d = layer.kernel_size, layer.stride, layer.dilation
    pads = []
    for size in reversed(x.shape[2:]):  # F.pad begins with the last dimension
        extent = (k - 1) * d + 1
        total = max(extent - s, 0) if size % s == 0 else max(extent - size % s, 0)
        pads += [total // 2, total - total // 2]
    weight = standardize_weight(layer.weight, layer.gain)
    return F.conv2d(F.pad(x, pads), weight, layer.bias, s, 0, d, layer.groups)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_padding_is_tensorflows(stride, kernel_size, dilation):
    layer = conv(2, 3, kernel_size, stride, dilation=dilation)
    for size in range(1, 14):
        x = torch.randn(2, 2, size, size, dtype=DOUBLE)
        out = layer(x)
        assert out.shape == (2, 3, -(-size // stride), -(-size // stride))
        torch.testing.assert_close(out, tensorflow_conv(x, layer), **CLOSE)


@pytest.mark.parametrize("size", [(8, 9), (9, 8), (1, 6), (5, 12), (7, 4)])
@pytest.mark.parametrize(("kernel_size", "stride", "dilation"), [(3, 2, 1), (7, 2, 1), (3, 3, 2), (5, 3, 1), (3, 1, 2)])
def test_height_and_width_are_padded_each_for_itself(size, kernel_size, stride, dilation):
    layer, x = conv(2, 3, kernel_size, stride, dilation=dilation), torch.randn(2, 2, *size, dtype=DOUBLE)
    out = layer(x)
    assert out.shape[2:] == tuple(-(-n // stride) for n in size)
    torch.testing.assert_close(out, tensorflow_conv(x, layer), **CLOSE)


def test_stride_two_on_an_even_size_pads_behind_only():
    layer = WSConv2d(1, 1, 3, 2, bias=False, dtype=DOUBLE)
    x = torch.zeros(1, 1, 4, 4, dtype=DOUBLE)
    x[0, 0, 0, 0] = 1  # at the corner of the first window, so it meets the kernel's first element
    assert layer(x)[0, 0, 0, 0] == layer.standardized_weight()[0, 0, 0, 0]


@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize(("stride", "dilation", "groups"), [(1, 1, 1), (2, 1, 2), (3, 2, 2)])
def test_integer_padding_is_torchs(padding, stride, dilation, groups):
    layer = conv(4, 6, 3, stride, padding, dilation, groups)
    x = torch.randn(2, 4, 9, 10, dtype=DOUBLE)
    weight = standardize_weight(layer.weight, layer.gain)
    torch.testing.assert_close(
        layer(x), F.conv2d(x, weight, layer.bias, stride, padding, dilation, groups), rtol=0, atol=0
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_compiled_for_any_size(stride):
    layer = conv(2, 3, 3, stride)
    compiled = torch.compile(layer, backend="eager", fullgraph=True, dynamic=True)
    for size in ((8, 8), (7, 7), (10, 9)):
        x = torch.randn(2, 2, *size, dtype=DOUBLE)
        torch.testing.assert_close(compiled(x), layer(x), **CLOSE)


@pytest.mark.parametrize("stride", [1, 2])
def test_groups_do_not_see_each_other(stride):
    layer, x = conv(6, 9, 3, stride, groups=3), torch.randn(2, 6, 8, 8, dtype=DOUBLE)
    weight = standardize_weight(layer.weight, layer.gain)
    parts = []
    for group in range(3):
        alone = conv(2, 3, 3, stride)
        units = slice(3 * group, 3 * group + 3)
        with torch.no_grad():
            for name in ("weight", "gain", "bias"):
                getattr(alone, name).copy_(getattr(layer, name)[units])
        parts.append(alone(x[:, 2 * group : 2 * group + 2]))
        torch.testing.assert_close(alone.standardized_weight(), weight[units], **CLOSE)
    torch.testing.assert_close(layer(x), torch.cat(parts, 1), **CLOSE)


@pytest.mark.parametrize("stride", [1, 2])
def test_input_scale_is_a_factor_of_the_input(stride):
    layer, x, factor = conv(4, 6, 3, stride), torch.randn(2, 4, 8, 8, dtype=DOUBLE), 1.7139 / math.sqrt(1.08)
    expected = layer(factor * x)
    layer.input_scale = factor
    torch.testing.assert_close(layer(x), expected, **CLOSE)  # conv(c * a, W) = conv(a, c * W)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("input_scale", [1.0, 1.3])
def test_output_scale_is_a_factor_of_the_output(bias, input_scale):
    layer, x = conv(4, 6, 3, bias=bias, input_scale=input_scale), torch.randn(2, 4, 8, 8, dtype=DOUBLE)
    scale = torch.tensor([0.2 * 0.7], dtype=DOUBLE, requires_grad=True)
    out = layer(x, scale)
    torch.testing.assert_close(out, layer(x) * scale, **CLOSE)
    upstream = torch.randn_like(out)
    inputs = [scale, layer.weight, layer.gain] + ([layer.bias] if bias else [])
    got = torch.autograd.grad(out, inputs, upstream)
    expected = torch.autograd.grad(layer(x) * scale, inputs, upstream)
    torch.testing.assert_close(got, expected, **CLOSE)


def test_output_scale_zero_gives_zero():
    layer = conv(4, 6, 3)
    assert not layer(torch.randn(1, 4, 5, 5, dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE)).any()


def test_gain_and_bias_are_optional(portable):
    layer, x = WSConv2d(4, 6, 3, bias=False, gain=False), torch.randn(1, 4, 6, 6)
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    torch.testing.assert_close(layer(x), F.conv2d(x, standardize_weight(layer.weight), padding=1), rtol=0, atol=0)


def test_parameters_and_roles():
    layer = WSConv2d(4, 6, 3, groups=2)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == dict(
        weight=(6, 2, 3, 3), gain=(6,), bias=(6,)
    )
    assert layer.parameter_roles == dict(weight=Role.WEIGHT, gain=Role.GAIN, bias=Role.BIAS)
    assert torch.equal(layer.gain, torch.ones(6))
    assert torch.equal(layer.bias, torch.zeros(6))


def test_initial_weights_have_variance_one_over_fan_in():
    layer = WSConv2d(64, 256, 3)
    # 147,456 weights: the standard error of their variance is 0.4 %, five of them
    assert layer.weight.var().item() * 576 == pytest.approx(1, rel=0.02)


def test_keeps_unit_variance():
    layer = WSConv2d(32, 256, 3, padding=0, dtype=DOUBLE)
    out = layer(torch.randn(16, 32, 34, 34, dtype=DOUBLE))
    assert out.var().item() == pytest.approx(1, rel=0.02)  # five times the most that eight seeds showed


def test_device_and_dtype():
    layer = WSConv2d(4, 6, 3, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.bfloat16)}
    assert layer(torch.empty(2, 4, 7, 7, device="meta", dtype=torch.bfloat16)).shape == (2, 6, 7, 7)


@pytest.mark.parametrize(
    ("options", "quoted"),
    [
        (dict(in_channels=0), r"in_channels \(=0\)"),
        (dict(out_channels=-3), r"out_channels \(=-3\)"),
        (dict(kernel_size=0), r"kernel_size \(=0\)"),
        (dict(kernel_size=(3, 3, 3)), r"kernel_size \(=\(3, 3, 3\)\)"),
        (dict(stride=0), r"stride \(=0\)"),
        (dict(stride=1.5), r"stride \(=1.5\)"),
        (dict(dilation=0), r"dilation \(=0\)"),
        (dict(groups=0), r"groups \(=0\)"),
        (dict(groups=5), r"in_channels \(=48\) must be divisible by groups \(=5\)"),
        (dict(groups=16), r"out_channels \(=40\) must be divisible by groups \(=16\)"),
        (dict(padding="valid"), r"padding \(='valid'\)"),
        (dict(padding=-1), r"padding \(=-1\)"),
        (dict(padding=0.5), r"padding \(=0.5\)"),
        (dict(padding=True), r"padding \(=True\)"),
        (dict(kernel_size=True), r"kernel_size \(=True\)"),
        (dict(eps=-1), r"eps \(=-1\) must be at least 0"),
        (dict(eps=float("nan")), r"eps \(=nan\) must be a finite number"),
        (dict(input_scale=float("nan")), r"input_scale \(=nan\) must be a finite number"),
        (dict(input_scale="2"), r"input_scale \(='2'\) must be a finite number"),
        (dict(out_channels=48, kernel_size=1, groups=48), r"in_channels / groups \(=48 / 48\) with kernel_size 1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_quoted(options, quoted):
    with pytest.raises(UsageError, match=quoted):
        WSConv2d(**dict(in_channels=48, out_channels=40, kernel_size=3) | options)


@pytest.mark.parametrize(("channels", "size", "stride"), [(3, 1, 2), (3, 3, 1), (3, 3, 2), (16, 1, 2)])
def test_an_image_without_a_batch(channels, size, stride):
    layer, x = WSConv2d(channels, 4, size, stride), torch.randn(channels, 7, 8)
    torch.testing.assert_close(layer(x), layer(x[None])[0])


def test_repr_tells_what_differs_from_the_default():
    assert repr(WSConv2d(4, 6, 3, 2)) == "WSConv2d(4, 6, kernel_size=3, stride=2, padding='same')"
    text = repr(WSConv2d(4, 6, 3, padding=1, dilation=2, groups=2, bias=False, input_scale=1.5))
    assert all(part in text for part in ("padding=1", "dilation=2", "groups=2", "input_scale=1.5", "bias=False"))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [3, 8, 15, 16])
@pytest.mark.parametrize("size", [1, 7, 16])
def test_thin_strided_layers_are_the_same_function(channels, size, layout):
    """With few channels every second place is taken first; gradients, too, also behind an activation."""
    conv = WSConv2d(channels, 8, 1, 2).to(memory_format=layout)
    assert conv._thin == (channels < 16)
    x = torch.randn(3, channels, size, size).to(memory_format=layout).requires_grad_()
    (out,) = activated(Activation("gelu_erf"), x, conv)
    weight = conv.effective_weight().contiguous()
    expected = F.conv2d(F.gelu(x.contiguous())[:, :, ::2, ::2], weight, conv.bias)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad(y, [x, *conv.parameters()], grad) for y in (out, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_two_layers_behind_one_activation_of_which_one_is_thin():
    wide, thin = WSConv2d(8, 8, 1), WSConv2d(8, 8, 1, 2)
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    a, b = activated(Activation("gelu"), x, wide, thin)
    gelu = F.gelu(x, approximate="tanh")
    plain = (
        F.conv2d(gelu, wide.effective_weight(), wide.bias),
        F.conv2d(gelu[:, :, ::2, ::2], thin.effective_weight(), thin.bias),
    )
    params = [x, *wide.parameters(), *thin.parameters()]
    ours = torch.autograd.grad(a.square().sum() + b.square().sum(), params)
    theirs = torch.autograd.grad(sum(y.square().sum() for y in plain), params)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
