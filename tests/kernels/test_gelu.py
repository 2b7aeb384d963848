"""The compiled activations against float64, against torch, and where torch must take over."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from normfree import kernels
from normfree.kernels import activation

pytestmark = pytest.mark.usefixtures("compiled")
SLOPE = 2 * math.sqrt(2 / math.pi)
SPECIAL = [math.inf, -math.inf, math.nan, 0.0, -0.0, 1e-40, -1e-40, 1e-45, 1e10, -1e10, 1e20, -1e20, 3e38, -3e38, -88.0]
THEIRS = {"gelu_tanh": functools.partial(F.gelu, approximate="tanh"), "gelu": F.gelu, "silu": F.silu}
OURS = {"gelu_tanh": kernels.gelu_tanh, "gelu": kernels.gelu, "silu": kernels.silu}
NUMBERS = {"gelu_tanh": activation._GELU_TANH, "gelu": activation._GELU, "silu": activation._SILU}
FUNCTIONS = {
    name: functools.partial(lambda number, x: activation._Apply.apply(x, number), n) for name, n in NUMBERS.items()
}
ATEN = {"gelu_tanh": "gelu", "gelu": "gelu", "silu": "silu"}
every = pytest.mark.parametrize("name", OURS)
forward = pytest.mark.parametrize("name", ["gelu_tanh", "silu"])  # the erf form itself is torch's


def sigmoid_argument(name, x):
    return SLOPE * (x + 0.044715 * x**3) if name == "gelu_tanh" else x


def exact(name, x):
    """The function and its derivative in float64, without the cancellation of 1 + tanh."""
    if name == "gelu":
        integral = torch.special.erfc(-x / math.sqrt(2)) / 2
        return x * integral, integral + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    z = sigmoid_argument(name, x)
    slope = SLOPE * (1 + 3 * 0.044715 * x**2) if name == "gelu_tanh" else 1.0
    s = torch.sigmoid(z)
    return x * s, s + x * s * torch.sigmoid(-z) * slope


def gradient(function, x, grad=None):
    x = x.detach().requires_grad_()
    out = function(x)
    return torch.autograd.grad(out, x, torch.ones_like(out) if grad is None else grad)[0]


def neighbours(x, y):
    """How many bfloat16 numbers lie between x and y; two NaN are the same."""
    places = [t.view(torch.int16).int() for t in (x, y)]
    places = [torch.where(p < 0, -32768 - p, p) for p in places]
    return torch.where(x.isnan() & y.isnan(), 0, (places[0] - places[1]).abs())


def halves(got, expected) -> float:
    """The largest error in halves of a unit in the last place of float32."""
    return ((got - expected).abs() / (2**-24 * expected.abs().clamp(min=0.5))).max().item()


@every
def test_float32_is_exact_to_rounding(name):
    x = torch.linspace(-20, 20, 1_000_003)
    value, slope = exact(name, x.double())
    # halves of a unit in the last place, of 0.5 where the value is smaller; the erf form's value is torch's, the tail
    # in its gradient a fit of nine terms, whose products are rounded where the processor does not fuse them
    fused = torch.backends.cpu.get_cpu_capability() != "DEFAULT"
    erf = (35, 8) if fused else (halves(THEIRS[name](x), value), 10)
    limits = erf if name == "gelu" else (4, 4)
    assert halves(OURS[name](x), value) <= limits[0]
    assert halves(gradient(OURS[name], x), slope) <= limits[1]


@pytest.mark.parametrize("name", ["gelu_tanh", "gelu"])
def test_gradient_is_closer_than_torchs(name):
    x = torch.linspace(-20, 20, 100_003)
    slope = exact(name, x.double())[1]
    ours, theirs = ((gradient(f[name], x) - slope).abs().max() for f in (OURS, THEIRS))
    assert ours < theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gelu_itself_is_torchs_to_the_bit(dtype, layout):
    x = (3 * torch.randn(2, 33, 9, 7)).to(dtype).to(memory_format=layout).requires_grad_()
    ours = kernels.gelu(x)
    assert torch.equal(ours, F.gelu(x.contiguous()))  # channels last, torch's own rounds otherwise
    assert ours.stride() == x.stride()


@forward
def test_bfloat16_is_the_exact_value_rounded(name):
    x = torch.arange(65536).to(torch.int32).to(torch.int16).view(torch.bfloat16)  # all there are
    expected = exact(name, x.double())[0].to(torch.bfloat16)
    usual = x.isfinite() & (expected.abs() > 1e-30)  # beyond, float32's exponents end and both give almost 0
    off = neighbours(OURS[name](x), expected)[usual]
    assert off.max() <= 1
    assert (off > 0).sum() <= 8  # float32's own rounding, just before: of 65536


@forward
def test_bfloat16_is_torchs(name):
    x = torch.arange(65536).to(torch.int32).to(torch.int16).view(torch.bfloat16)
    ours, theirs = OURS[name](x), THEIRS[name](x)
    assert torch.equal(ours.isnan(), theirs.isnan())
    where = (x > -4) | (x.isnan())  # further left torch's 1 + tanh has no bits left
    assert neighbours(ours, theirs)[where].max() <= 1
    assert (neighbours(ours, theirs)[where] > 0).sum() <= 4
    finite = theirs.isfinite()
    assert (ours - theirs)[finite].abs().max() <= 2e-5


@every
def test_bfloat16_gradient_is_rounded_once(name):
    x = torch.linspace(-10, 10, 4096).bfloat16()
    grad = torch.randn(4096).bfloat16()
    expected = (grad.double() * exact(name, x.double())[1]).to(torch.bfloat16)
    off = neighbours(gradient(OURS[name], x, grad), expected)[expected.abs() > 1e-5]
    assert off.max() <= 1
    assert (off > 0).sum() <= 8


@every
def test_special_values_are_torchs(name):
    x = torch.tensor(SPECIAL * 3)  # in full vectors and in their rest
    if name == "gelu":
        x = x[x.abs() < 1e38]  # torch's gradient is NaN at infinity
    # float32 loses exp's last bits far to the left, where the value is next to nothing
    tolerance = dict(rtol=1e-4, atol=1e-30, equal_nan=True)
    torch.testing.assert_close(OURS[name](x), THEIRS[name](x), **tolerance)
    torch.testing.assert_close(gradient(OURS[name], x), gradient(THEIRS[name], x), **tolerance)
    assert torch.equal(OURS[name](x).signbit(), THEIRS[name](x).signbit())


@pytest.mark.sample(0.34, by=("name", "size"))
@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [0, 1, 7, 15, 16, 17, 31, 33, 16384, 16385, 100_001])
def test_sizes_and_threads(name, dtype, size, threads):
    x, grad = torch.randn(2, size).to(dtype)
    tolerance = dict(rtol=1e-5, atol=1e-6) if dtype is torch.float32 else dict(rtol=2**-7, atol=2**-8)
    torch.testing.assert_close(OURS[name](x), THEIRS[name](x), **tolerance)
    torch.testing.assert_close(gradient(OURS[name], x, grad), gradient(THEIRS[name], x, grad), **tolerance)


@every
def test_threads_do_not_change_a_bit(name):
    x = torch.randn(200_003)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append((OURS[name](x), gradient(OURS[name], x)))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@every
@pytest.mark.parametrize("grad_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("x_format", [torch.contiguous_format, torch.channels_last])
def test_memory_formats(name, x_format, grad_format):
    x = torch.randn(2, 5, 7, 3).contiguous(memory_format=x_format)
    grad = torch.randn(2, 5, 7, 3).contiguous(memory_format=grad_format)
    assert activation.supported(x)
    assert OURS[name](x).stride() == x.stride()
    torch.testing.assert_close(OURS[name](x), THEIRS[name](x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient(OURS[name], x, grad), gradient(THEIRS[name], x, grad), rtol=1e-5, atol=1e-6)


@every
def test_a_gradient_without_memory_of_its_own(name):
    x = torch.randn(4, 6, requires_grad=True)
    OURS[name](x).sum().backward()  # expanded from one number
    torch.testing.assert_close(x.grad, gradient(THEIRS[name], x), rtol=1e-5, atol=1e-6)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [1, 3, 5])
def test_unaligned_views(name, dtype, offset):
    x = torch.randn(1000).to(dtype)[offset:]
    assert activation.supported(x)
    torch.testing.assert_close(OURS[name](x), THEIRS[name](x), rtol=2**-7, atol=2**-8)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(OURS[name](x), THEIRS[name](x) + 0.1, rtol=2**-7, atol=2**-8)


@every
def test_gradcheck(name):
    x = (3 * torch.randn(5, 7, dtype=torch.float64)).requires_grad_()
    torch.testing.assert_close(FUNCTIONS[name](x), THEIRS[name](x), rtol=1e-13, atol=1e-13)
    assert torch.autograd.gradcheck(FUNCTIONS[name], (x,))
    assert torch.autograd.gradgradcheck(FUNCTIONS[name], (x,))


@every
def test_what_is_not_supported_goes_to_torch(name):
    base = torch.randn(8, 12)
    others = [
        base.double(),
        base.half(),
        base.t(),
        base[:, ::2],
        base.expand(3, 8, 12),
        base.to("meta"),
        base.to_sparse().to_dense().as_subclass(Subclass),
    ]
    for x in others:
        assert not activation.supported(x)
        ours, theirs = OURS[name](x), THEIRS[name](x)
        assert type(ours) is type(theirs)
        assert ours.dtype == theirs.dtype
        assert ours.stride() == theirs.stride()
        if ours.device.type == "cpu":
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


class Subclass(torch.Tensor):
    pass


class Counting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(function.overloadpacket.__name__)
        return function(*args, **kwargs or {})


@every
def test_who_watches_sees_torchs_operation(name):
    x = torch.randn(5)
    with Counting() as mode:
        OURS[name](x)
    assert mode.seen == [ATEN[name]]


@every
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, at its first vmap
def test_transforms(name):
    x, tangent = torch.randn(2, 3, 4)
    theirs = THEIRS[name]
    for transform in (torch.func.vmap, lambda f: torch.func.vmap(torch.func.grad(lambda x: f(x).sum()))):
        torch.testing.assert_close(transform(OURS[name])(x), transform(theirs)(x))
    ours, expected = (torch.func.jvp(f, (x,), (tangent,)) for f in (OURS[name], theirs))
    torch.testing.assert_close(ours, expected)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(OURS[name](dual)).tangent, expected[1])


@every
def test_exported_graphs_have_torchs_operation(name):
    class Net(torch.nn.Module):
        def forward(self, x):
            return OURS[name](x)

    x = torch.randn(3)
    graph = torch.export.export(Net(), (x,)).graph
    assert [str(node.target) for node in graph.nodes if node.op == "call_function"] == [f"aten.{ATEN[name]}.default"]
    torch.testing.assert_close(torch.compile(OURS[name], backend="eager", fullgraph=True)(x), THEIRS[name](x))


@every
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_traced_functions_are_not_constants(name):
    x = torch.randn(3)
    torch.testing.assert_close(torch.jit.trace(OURS[name], x)(x + 1), THEIRS[name](x + 1))


def test_checkpointing_and_no_grad():
    x = torch.randn(9, requires_grad=True)
    out = torch.utils.checkpoint.checkpoint(kernels.gelu_tanh, x, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), x)[0], gradient(kernels.gelu_tanh, x), rtol=0, atol=0)
    with torch.no_grad():
        assert not kernels.gelu_tanh(x).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(kernels.gelu_tanh(x), THEIRS["gelu_tanh"](x))


def test_an_input_changed_in_place_is_noticed():
    x = torch.randn(9, requires_grad=True)
    y = x * 1
    out = kernels.gelu_tanh(y)
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
