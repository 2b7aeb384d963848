"""Activations computed again in the backward pass: the same gradients, and fewer bytes kept."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import normfree
from normfree.nn import (
    Activated,
    Activation,
    AvgPoolSame,
    SqueezeExcite,
    WSConv2d,
    activated,
    gated_activated,
    recompute,
    recompute_weights,
)
from normfree.training.memory import Allocated

SMOOTH = ("gelu", "silu", "gelu_erf")


def conv(stride=1, groups=1):
    """Away from its initial gain and bias."""
    layer = WSConv2d(8, 8, 3, stride, groups=groups).double()
    nn.init.normal_(layer.gain)
    nn.init.normal_(layer.bias)
    return layer


def plain(act, x, *layers):
    out = act(x)
    return tuple(layer(out) for layer in layers)


def gradients(function, act, x, *layers):
    x = x.detach().clone().requires_grad_()
    outs = function(act, x, *layers)
    parameters = [p for layer in layers for p in layer.parameters()]
    return outs, torch.autograd.grad(sum(out.square().sum() for out in outs), [x, *parameters])


LAYERS = {
    "convolution": lambda: [conv()],
    "padded": lambda: [conv(stride=2)],  # of an even size: more behind than before
    "two layers": lambda: [nn.Sequential(AvgPoolSame(), conv()), conv()],
    "padded first": lambda: [conv(stride=2), conv()],
    "grouped": lambda: [conv(groups=4)],
}


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("name", [*SMOOTH, "relu", "tanh"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_outputs_and_gradients_are_those_of_the_composition(layers, name, memory_format):
    layers, act = LAYERS[layers](), Activation(name)
    x = torch.randn(2, 8, 10, 10, dtype=torch.float64).to(memory_format=memory_format)
    got, expected = (gradients(function, act, x, *layers) for function in (activated, plain))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)  # the same operations on the same numbers


@pytest.mark.parametrize("name", SMOOTH)
def test_second_derivatives(name):
    layer, act = conv(), Activation(name)
    x = torch.randn(1, 8, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: activated(act, x, layer), x)
    got, expected = (
        torch.autograd.grad(torch.autograd.grad(f(act, x, layer)[0].sum(), x, create_graph=True)[0].square().sum(), x)
        for f in (activated, plain)
    )
    torch.testing.assert_close(got, expected)


def kept(function) -> int:
    with Allocated() as allocated:
        out = function()
        here = allocated.now
    del out
    return here


def plainly_gated(act, x, gate, layer):
    out = act(x)
    return layer(out * gate(out))


@pytest.mark.parametrize("name", [*SMOOTH, "relu", "tanh"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gated_activations_are_those_of_the_composition(name, memory_format):
    act, gate, layer = Activation(name), SqueezeExcite(8, 0.5).double(), conv()
    x = torch.randn(2, 8, 10, 10, dtype=torch.float64).to(memory_format=memory_format)
    found = []
    for function in (gated_activated, plainly_gated):
        leaf = x.detach().clone().requires_grad_()
        out = function(act, leaf, gate.gate, layer)
        parameters = [*gate.parameters(), *layer.parameters()]
        found.append((out, torch.autograd.grad(out.square().sum(), [leaf, *parameters])))
    torch.testing.assert_close(*found, rtol=0, atol=0)  # the same operations on the same numbers


def test_neither_the_activation_nor_its_product_with_the_gate_is_kept():
    gate, layer = SqueezeExcite(8, 0.5).double(), conv()

    def keeps(function, name):
        def run():
            x = torch.randn(64, 8, 32, 32, dtype=torch.float64, requires_grad=True)
            return x, function(Activation(name), x, gate.gate, layer)

        return kept(run)

    size = 64 * 8 * 32 * 32 * 8
    assert keeps(plainly_gated, "silu") - keeps(gated_activated, "silu") >= 2 * size
    assert keeps(plainly_gated, "relu") == keeps(gated_activated, "relu")


def test_a_gate_that_was_changed_in_place_is_an_error():
    act, layer = Activation("silu"), conv()
    x, factor = torch.randn(2, 8, 6, 6, dtype=torch.float64, requires_grad=True), torch.ones(2, 8, 1, 1).double()
    out = gated_activated(act, x, lambda y: factor, layer)
    factor.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("layers", LAYERS)
def test_the_activation_is_not_kept(layers):
    layers = LAYERS[layers]()

    def keeps(function, name):
        def run():
            x = torch.randn(64, 8, 32, 32, dtype=torch.float64, requires_grad=True)
            return x, function(Activation(name), x, *layers)

        return kept(run)

    size = 64 * 8 * 32 * 32 * 8
    alone = len(layers) == 1 and layers[0].stride == 2  # then the padded activation is all that was kept
    assert keeps(plain, "gelu") - keeps(activated, "gelu") >= size * (33 * 33 / 32 / 32 if alone else 1)
    assert keeps(plain, "relu") == keeps(activated, "relu")


def test_a_network_keeps_its_convolutions_outputs_alone():
    """Per image, twice as many bytes are kept when hooks of one's own forbid to compute again."""
    model = normfree.create_model(
        "nfnet_f0", widths=(16, 32, 64, 64), depths=(1, 2, 2, 1), group_width=8, num_classes=10
    ).train()

    def per_image(inside):
        few, many = (kept(lambda n=n: inside(torch.randn(n, 3, 64, 64))) for n in (1, 9))
        return (many - few) / 8

    def everything(x):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            return model(x)

    assert per_image(model) < 0.6 * per_image(everything)


def test_what_lies_where_an_activation_lay_is_kept_as_it_is():
    """The layers make and free tensors of the activation's size; none must be taken for it."""
    act = Activation("gelu")
    x = torch.randn(64, 8, 32, 32, dtype=torch.float64, requires_grad=True)

    class Careless(nn.Module):
        def forward(self, x):
            for _ in range(4):
                x = (x * 1.5).exp().clamp(max=3)  # exp keeps its result, clamp its input
            return x

    layer = conv(2)
    got, expected = (gradients(function, act, x, Careless(), layer) for function in (activated, plain))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "layer",
    [
        lambda t: t[0] ** 2,
        lambda t: t[:, :4] * t[:, :4],
        lambda t: t.transpose(2, 3) * t,
        lambda t: t[:, :, ::2, ::2] ** 2,
        lambda t: t.flatten(1).square(),
    ],
)
def test_views_of_an_activation_are_kept_as_they_are(layer):
    act = Activation("gelu")
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    got, expected = (gradients(function, act, x, layer_of(layer)) for function in (activated, plain))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def layer_of(function):
    class Layer(nn.Module):
        forward = staticmethod(function)

    return Layer()


def test_checkpointing_and_hooks_of_others_decide_themselves():
    x, layer, act, seen = (
        torch.randn(1, 8, 4, 4, dtype=torch.float64, requires_grad=True),
        conv(),
        Activation("gelu"),
        [],
    )
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t.shape) or t, lambda t: t):
        assert recompute._decided(act(x))
        (out,) = activated(act, x, layer)
    assert seen.count(x.shape) >= 2  # the activation's input and the convolution's
    run = lambda x: activated(act, x, layer)[0]  # noqa: E731
    got = torch.autograd.grad(checkpoint(run, x, use_reentrant=False).sum(), x)
    torch.testing.assert_close(got, torch.autograd.grad(out.sum(), x), rtol=0, atol=0)


def test_function_transforms_and_meta_tensors():
    layer, act = conv(), Activation("gelu")
    x = torch.randn(1, 8, 4, 4, dtype=torch.float64)
    loss = lambda x: activated(act, x, layer)[0].square().sum()  # noqa: E731
    expected = gradients(plain, act, x, layer)[1][0]
    torch.testing.assert_close(torch.func.grad(loss)(x), expected)
    there = WSConv2d(8, 8, 3, device="meta")
    activated(act, x.float().to("meta").requires_grad_(), there)[0].sum().backward()
    assert there.weight.grad.shape == there.weight.shape


NET = dict(widths=(16, 32, 64, 64), depths=(1, 2, 2, 1), group_width=8, num_classes=10)


def a_step(model, x, precision):
    """Output and gradients, by parameter."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        out = model(x)
    out.float().square().sum().backward()
    return out, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", ["nfnet_f0", "timm_dm_nfnet_f0"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_standardized_weights_are_computed_again_to_the_same_gradients(name, precision):
    model = normfree.create_model(name, **NET, drop_rate=0.0, stochdepth_rate=0.0)
    for parameter in model.parameters():
        if parameter.ndim < 2:
            nn.init.normal_(parameter)
    x = torch.randn(2, 3, 64, 64)
    expected = a_step(model, x, precision)
    recompute_weights(model)
    torch.testing.assert_close(a_step(model, x, precision), expected, rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_standardized_weights_are_not_kept(precision):
    model = normfree.create_model("nfnet_f0", **NET).train()
    size = sum(m.weight.numel() for m in model.modules() if isinstance(m, WSConv2d))

    def keeps():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return kept(lambda: model(torch.randn(1, 3, 64, 64)))

    before = keeps()
    recompute_weights(model)
    assert before - keeps() == size * (2 if precision == "bfloat16" else 4)
    recompute_weights(model, False)
    assert keeps() == before


def test_changed_weights_are_not_standardized_again_in_silence():
    layer = conv()
    recompute_weights(layer)
    out = layer(torch.randn(1, 8, 4, 4, dtype=torch.float64))
    with torch.no_grad():
        layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def changed_behind_gelu():
    """The layer is padded, so that what it reads follows from what is computed again."""
    row = Activated(Activation("gelu"), conv(2))
    return row, row(torch.randn(1, 8, 4, 4, dtype=torch.float64, requires_grad=True)), row[1].weight


def changed_in_front_of_gelu():
    x = torch.randn(1, 8, 4, 4, dtype=torch.float64, requires_grad=True) * 1.0
    return None, activated(Activation("gelu"), x, nn.Conv2d(8, 8, 3).double())[0], x


def changed_weight():
    row = Activated(Activation("silu"), nn.Conv2d(8, 8, 3, padding=1).double())
    return row, row(torch.randn(1, 8, 4, 4, dtype=torch.float64, requires_grad=True)), row[1].weight


def changed_input():
    layer, x = conv(), torch.randn(1, 8, 4, 4, dtype=torch.float64, requires_grad=True) * 1.0
    recompute_weights(layer)
    return layer, layer(x), x


def changed_scale():
    layer, scale = conv(), torch.ones(1, dtype=torch.float64)
    recompute_weights(layer)
    return layer, layer(torch.randn(1, 8, 4, 4, dtype=torch.float64, requires_grad=True), scale), scale


@pytest.mark.parametrize(
    "case", [changed_behind_gelu, changed_in_front_of_gelu, changed_weight, changed_input, changed_scale]
)
def test_what_the_backward_pass_needs_must_not_have_been_changed_in_place(case):
    _, out, read = case()
    with torch.no_grad():
        read.mul_(3)
    with pytest.raises(RuntimeError, match=r"by an inplace operation: .* at version \d+; expected version \d+"):
        out.square().sum().backward()


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_a_step_between_two_backward_passes_of_one_graph(activation):
    model = normfree.create_model("nf_resnet26_small", num_classes=3, activation=activation).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "skip" in name:
                parameter.fill_(0.5)
    optimizer = torch.optim.SGD(model.stages.parameters(), lr=0.05)
    loss = model(torch.randn(1, 3, 32, 32)).square().sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_replaced_weights_do_not_change_gradients():
    layer, x = conv(), torch.randn(1, 8, 4, 4, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(layer(x).square().sum(), x)
    recompute_weights(layer)
    out = layer(x)
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))
    torch.testing.assert_close(torch.autograd.grad(out.square().sum(), x)[0], expected, rtol=0, atol=0)


def test_layers_that_change_the_activation_in_place():
    """What lies there afterwards is no longer the activation."""
    act, layer = Activation("gelu"), nn.Sequential(nn.ReLU(inplace=True), conv())
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    got, expected = (gradients(function, act, x, layer) for function in (activated, plain))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_the_graph_is_freed_with_its_output():
    """An operation that keeps its own result must not hold itself through the hooks."""
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64, requires_grad=True)
    (out,) = activated(Activation("gelu"), x, layer_of(torch.exp))
    there = weakref.ref(out)
    gc.disable()
    try:
        del out
        assert there() is None
    finally:
        gc.enable()


def test_second_derivatives_of_weights_that_are_computed_again():
    layer = conv()
    x = torch.randn(1, 8, 4, 4, dtype=torch.float64, requires_grad=True)

    def twice():
        (first,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [x, layer.weight, layer.gain])

    expected = twice()
    recompute_weights(layer)
    torch.testing.assert_close(twice(), expected)


def test_rows_of_layers():
    layers = [conv(), Activation("gelu"), conv(2), Activation("gelu"), Activation("silu"), conv()]
    row = Activated(*layers, Activation("gelu"))
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(row(x), nn.Sequential(*row)(x), rtol=0, atol=0)
