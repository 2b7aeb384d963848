"""Depth, channels and constants of activations, operation by operation."""

import gc

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from normfree.spp.moments import Moments
from normfree.spp.origin import Origin, Origins, is_gate, tensors_in


class Watch(TorchDispatchMode):
    """Nothing but origins."""

    def __init__(self, x, origin=None):
        super().__init__()
        self.origins = Origins()
        self.origins[x] = origin or Origin()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = [x for x in tensors_in((args, kwargs)) if self.origins[x] is not None]
        origin = self.origins.of_result(func, args, inputs) if inputs else None
        output = func(*args, **kwargs)
        for x in tensors_in(output):
            if origin is not None:
                self.origins[x] = origin
        return output


def origin_of(function, x, origin=None) -> Origin | None:
    with Watch(x, origin) as watch, torch.no_grad():
        return watch.origins[function(x)]


MATRIX, MATRICES, ATTENTION = (
    torch.ones(8, 6),
    torch.ones(2, 8, 6),
    nn.MultiheadAttention(8, 2, batch_first=True).eval(),
)
LAYERS = {
    "Conv1d": (nn.Conv1d(8, 6, 3), (2, 8, 8), 6, 1),
    "Conv2d": (nn.Conv2d(8, 6, 3, groups=2), (2, 8, 8, 8), 6, 1),
    "Conv3d": (nn.Conv3d(8, 6, 1), (2, 8, 4, 4, 4), 6, 1),
    "ConvTranspose2d": (nn.ConvTranspose2d(8, 6, 3, groups=2), (2, 8, 8, 8), 6, 1),
    "Linear": (nn.Linear(8, 6), (2, 8), 6, -1),
    "Linear without bias": (nn.Linear(8, 6, bias=False), (2, 8), 6, -1),
    "Linear of tokens": (nn.Linear(8, 6), (2, 5, 8), 6, -1),
    "Linear of tokens without bias": (nn.Linear(8, 6, bias=False), (2, 5, 8), 6, -1),
    "Linear, channels last": (nn.Linear(8, 6), (2, 4, 4, 8), 6, -1),
    "matmul": (lambda x: x @ MATRIX, (2, 5, 8), 6, -1),
    "bmm": (lambda x: torch.bmm(x, MATRICES), (2, 5, 8), 6, -1),
    "baddbmm": (lambda x: torch.baddbmm(torch.zeros(6), x, MATRICES), (2, 5, 8), 6, -1),
    "attention": (lambda x: ATTENTION(x, x, x)[0], (2, 5, 8), 8, -1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_deeper_and_say_where_their_channels_are(name):
    layer, shape, channels, dim = LAYERS[name]
    origin = origin_of(layer, torch.randn(shape), Origin(depth=3))
    assert origin.depth >= 4
    assert (origin.channels, origin.dim) == (channels, dim)


@pytest.mark.parametrize(
    "function",
    [
        torch.relu,
        lambda x: x + 1,
        lambda x: x + torch.randn(8, 1, 1),
        lambda x: nn.functional.batch_norm(x, None, None, training=True),
        lambda x: nn.functional.max_pool2d(x, 2),
        lambda x: x @ x.mT,  # of two activations
        lambda x: x.flatten(2),
        lambda x: torch.cat([x, x], 1),
    ],
)
def test_other_operations_are_not_deeper(function):
    assert origin_of(function, torch.randn(2, 8, 4, 4), Origin(3, 8, 1)).depth == 3


@pytest.mark.parametrize("outputs", [5, 8])
def test_layers_over_tokens_leave_the_channels_where_they_are(outputs):
    def mix(x):
        return mixer(x.transpose(1, 2)).transpose(1, 2)

    mixer, x = nn.Linear(5, outputs), torch.randn(2, 5, 8)
    origin = origin_of(mix, x, Origin(3, 8, -1))
    assert (origin.depth, origin.channels, origin.dim) == (4, 8, -1)


def test_what_does_not_come_from_the_input_has_no_origin():
    assert origin_of(lambda x: torch.randn(2, 8) @ torch.randn(8, 3), torch.randn(2, 8)) is None


@pytest.mark.parametrize(
    ("function", "dim"),
    [
        (lambda x: x.permute(0, 2, 3, 1), -1),
        (lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2), 1),
        (lambda x: x.flatten(2).transpose(1, 2), -1),
        (lambda x: x.permute(0, 2, 3, 1).flatten(1, 2), -1),
        (lambda x: x.flatten(2).transpose(-1, -2).transpose(1, 2).unflatten(2, (8, 8)), 1),
        (lambda x: x.permute(0, 2, 3, 1).unflatten(1, (2, 4)).permute(0, 2, 1, 3, 4).flatten(0, 1), -1),
    ],
)
def test_channels_are_followed_through_permutations(function, dim):
    """Where every size is 8 or 64, so that shapes say nothing."""
    x = torch.randn(8, 8, 8, 8)
    with Watch(x, Origin(1, 8, 1)) as watch:
        y = function(x)
    assert watch.origins.channel_dim(y) % y.ndim == dim % y.ndim


@pytest.mark.parametrize(
    ("shape", "origin", "dim"),
    [
        ((2, 8, 4, 4), None, 1),
        ((2, 4, 8), None, -1),
        ((2, 8), None, 1),
        ((2, 4, 4, 8), Origin(1, 8, 1), -1),  # moved by an operation that is not followed
        ((2, 16, 4, 4), Origin(1, 8, -1), 1),  # concatenated
        ((2, 8, 8, 8), Origin(1, 8, -1), -1),
    ],
)
def test_channels_without_or_with_a_layer(shape, origin, dim):
    origins, x = Origins(), torch.randn(shape)
    if origin is not None:
        origins[x] = origin
    assert origins.channel_dim(x) == dim


def test_the_shortcut_says_where_channels_are_and_the_branch_where_it_does_not():
    origins, shortcut, branch = Origins(), torch.randn(2, 8, 8), torch.randn(2, 8, 8)
    origins[shortcut], origins[branch] = Origin(1, 8, -1), Origin(2, 8, 1)
    assert origins.channel_dim(shortcut, branch) == -1
    origins[shortcut] = Origin()
    assert origins.channel_dim(shortcut, branch) == 1


def scaled(*steps):
    """Origin of a layer's output times constants."""
    return origin_of(lambda x: apply(x, steps), torch.randn(2, 8, 4, 4), Origin(2, 8, 1))


def apply(x, steps):
    for step in steps:
        x = x / (1 / step[0]) if isinstance(step, tuple) else x * step
    return x


def test_constants_are_multiplied_up():
    gamma = torch.linspace(0.5, 1.5, 8).view(8, 1, 1)
    origin = scaled(0.5, gamma, torch.tensor(3.0), (2.0,))
    torch.testing.assert_close(origin.factor, 3 * gamma.flatten().double())
    assert origin.number == pytest.approx(1.0)  # 0.5 and 2 are numbers, the others are parameters
    assert origin.before is None


def test_what_was_before_a_zero_is_kept_without_the_constants():
    x = torch.randn(2, 8, 4, 4)
    origin = origin_of(lambda x: 0.5 * x * torch.zeros(1) * 3, x, Origin(2, 8, 1))
    assert isinstance(origin.before, Moments)
    assert origin.before.avg_var == pytest.approx(x.var((0, 2, 3), correction=0).mean().item(), rel=1e-5)
    small = torch.randn(2, 8, 1, 1)
    origin = origin_of(lambda x: x.mul_(0.0), before := small.clone(), Origin(2, 8, 1))
    assert torch.equal(origin.before, small)
    assert not before.any()


@pytest.mark.parametrize("constant", [torch.rand(4), torch.rand(2, 1, 1, 1), torch.rand(2, 8, 4, 4), torch.tensor(1j)])
def test_other_products_end_the_constants(constant):
    origin = origin_of(lambda x: x * 0.5 * constant, torch.randn(2, 8, 4, 4), Origin(2, 8, 1))
    assert (origin.factor, origin.number, origin.before) == (None, None, None)


def test_numbers_that_are_not_real_do_not_stop_the_model():
    assert origin_of(lambda x: x * 1j, torch.randn(2, 8), Origin(2, 8, 1)).factor is None
    assert origin_of(lambda x: x / 0, torch.randn(2, 8), Origin(2, 8, 1)).factor is None


@pytest.mark.parametrize("function", [torch.relu, lambda x: x + 1, lambda x: x.mean((2, 3))])
def test_a_function_ends_the_constants(function):
    assert origin_of(lambda x: function(0.5 * x), torch.randn(2, 8, 4, 4), Origin(2, 8, 1)).factor is None


@pytest.mark.parametrize("function", [torch.clone, torch.detach, lambda x: x.double()])
def test_copies_keep_the_constants(function):
    assert origin_of(lambda x: function(0.5 * x), torch.randn(2, 8, 4, 4), Origin(2, 8, 1)).number == 0.5


def test_gates():
    x, fc = torch.randn(2, 8, 8, 8), nn.Linear(8, 8)
    gate = lambda x: fc(x.mean((2, 3))).sigmoid()[:, :, None, None]  # noqa: E731
    mean = gate(x).mean().item()
    origin = origin_of(lambda x: x * gate(x), x, Origin(2, 8, 1))
    assert (origin.channels, origin.dim, origin.depth) == (8, 1, 3)  # as deep as the gate, shaped as what it gates
    assert origin.gate(0) == pytest.approx(mean)
    assert origin.gate(100) is None  # before the block began
    origin = origin_of(lambda x: 2 * (x * gate(x)), x, Origin(2, 8, 1))
    assert origin.gate(0) == pytest.approx(mean)  # without the number
    assert origin.gates[-1][1] == pytest.approx(2 * mean)


def test_what_is_a_gate():
    x = torch.randn(2, 8, 4, 4)
    assert is_gate(x.mean((2, 3), keepdim=True), x)
    assert is_gate(x.mean(1, keepdim=True), x)
    assert is_gate(x.mean((2, 3), keepdim=True).expand_as(x), x)
    assert not is_gate(x, x)
    assert not is_gate(x[0, 0], x)
    assert not is_gate(x[:1], x)


def test_origins_end_with_their_tensors():
    origins, x = Origins(), torch.randn(3)
    origins[x] = Origin()
    assert origins[x] is not None
    assert origins[3.0] is origins[None] is None
    del x
    gc.collect()
    assert not origins._entries


def test_tensors_in_nested_containers():
    a, b, c = torch.zeros(3)
    assert [*tensors_in((a, [3, {"x": b}], None, {"y": (c,)}))] == [a, b, c]
