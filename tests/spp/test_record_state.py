"""Recording changes nothing: not the forward pass, not the model, not the generators, whatever happens meanwhile."""

import contextlib
import gc
import weakref

import numpy as np
import pytest
import torch
from spp.hand_made import LAYOUTS, Block, Net, SqueezeExcite, sequence
from torch import nn

import normfree
from normfree import UsageError
from normfree.spp import record

SHAPE = (4, 3, 8, 8)
ENCODER = dict(d_model=32, nhead=4, dim_feedforward=64, batch_first=True)


def block(write=lambda b, x, f: x + f) -> Block:
    return Block(LAYOUTS["NCHW"], write)


class Kept(nn.Module):
    """Keeps what its network put out."""

    def __init__(self, network, kept):
        super().__init__()
        self.network, self.kept = network, kept

    def forward(self, x):
        self.kept.append(self.network(x))
        return self.kept[-1]


def networks():
    small = dict(widths=(16, 24, 32, 48), depths=(1, 2, 2, 1), num_classes=10, stochdepth_rate=0.0)
    nf = normfree.create_model("nf_regnet_b0", **small)
    with torch.no_grad():
        for name, parameter in nf.named_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) if "skip_gain" in name else 0)
    yield "nf_regnet", nf, (2, 3, 32, 32)
    yield "nf_regnet with skip gains of 0", normfree.create_model("nf_regnet_b0", **small), (2, 3, 32, 32)
    attention = nn.TransformerEncoderLayer(**ENCODER)
    yield "encoder", nn.Sequential(nn.Linear(3, 32), attention), (2, 7, 3)
    first = nn.TransformerEncoderLayer(**ENCODER, norm_first=True, activation="gelu")
    yield "encoder, norm first", nn.Sequential(nn.Linear(3, 32), first), (2, 7, 3)
    yield "gates", sequence(block(lambda b, x, f: torch.addcmul(x, f, b.gamma)), SqueezeExcite(8), block()), SHAPE
    yield "in place", sequence(block(lambda b, x, f: x.add_(f).relu_()), block(lambda b, x, f: x.mul_(0.5) + f)), SHAPE


@pytest.mark.parametrize(("name", "network", "shape"), list(networks()), ids=lambda v: v if isinstance(v, str) else "")
def test_the_forward_pass_is_bit_identical(name, network, shape):
    x, kept = torch.randn(shape), []
    network.eval()
    with torch.no_grad():
        expected = network(x.clone())
    record(Kept(network, kept), x)
    assert torch.equal(kept[0], expected)


class Noisy(nn.Module):
    """Draws random numbers, counts calls, replaces a buffer, has one that cannot be written."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("average", torch.full((3,), float("nan")))
        self.register_buffer("last", None)
        self.register_buffer("expanded", torch.zeros(1).expand(5))

    def forward(self, x):
        self.calls += 1
        self.average = x.mean((0, 2, 3))
        self.last = x
        self.register_buffer("new", x)
        return x.add_(torch.randn_like(x))


def state(model):
    """Everything that could have changed, by name."""
    found = {name: module.training for name, module in model.named_modules()}
    for name, module in model.named_modules():
        found |= {f"{name} {kind}": dict(getattr(module, kind)) for kind in HOOKS}
        found |= {f"{name}.{key}": (id(b), None if b is None else b.tolist()) for key, b in module._buffers.items()}
    return found


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
HOOKS += ("_forward_hooks_always_called", "_backward_hooks")


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_modes_buffers_hooks_and_generators(training, fails):
    def fail(b, x, f):
        if fails:
            raise ZeroDivisionError
        return x + f

    net = nn.Sequential(Noisy(), *sequence(block(), nn.BatchNorm2d(8), nn.Dropout(), block(fail))).train(training)
    net[3].eval()  # a frozen BatchNorm
    calls = []
    net[1].register_forward_hook(lambda *_: calls.append("after"))
    net[1].register_forward_pre_hook(lambda *_: calls.append("before"))
    net[3].running_mean += 1
    before, generator, x = repr(state(net)), torch.get_rng_state(), torch.randn(SHAPE)
    torch.set_rng_state(generator)
    copy = x.clone()
    with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext():
        record(net, x)
    assert repr(state(net)) == before
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(x, copy)
    assert calls == ["before", "after"]
    assert torch.is_grad_enabled()
    if not fails:
        assert record(net, x).to_json() == record(net, x).to_json()  # random numbers come from the seed
    record(sequence(block()), SHAPE)  # no mode was left on
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()


def test_state_is_restored_when_nothing_was_found():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    before = repr(state(net))
    with pytest.raises(UsageError):
        record(net, SHAPE)
    assert repr(state(net)) == before


@pytest.mark.parametrize("batch_stats", [True, False])
def test_batch_norm_by_the_batch_or_by_running_statistics(batch_stats):
    net = sequence(nn.Sequential(nn.BatchNorm2d(8), block()))
    net[1][0].running_var.fill_(100.0)
    variance = record(net, SHAPE, batch_stats=batch_stats).stem.avg_var
    assert variance == pytest.approx(1.0, rel=1e-3) if batch_stats else variance < 0.1


def test_dropout_and_stochastic_depth_are_off():
    net = sequence(block(lambda b, x, f: x + torch.nn.functional.dropout(f, 0.9, b.training)))
    (row,) = record(net.train(), SHAPE).rows
    assert row.res_avg_var == row.added_var
    assert row.avg_var == record(net.eval(), SHAPE).avg_var[0]


def test_hooks_of_the_user_that_change_the_signal_are_seen():
    net = sequence(block(), block())
    plain = record(net, SHAPE)
    net[1].register_forward_hook(lambda module, args, output: 3 * output)
    changed = record(net, SHAPE)
    np.testing.assert_allclose(changed.avg_var[0], 9 * plain.avg_var[0], rtol=1e-5)
    assert changed.rows[0].activated


def test_exceptions_that_the_model_catches():
    class Fallback(nn.Module):
        def __init__(self):
            super().__init__()
            self.fragile, self.conv = sequence(block(lambda b, x, f: 1 / 0), channels=8), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            with contextlib.suppress(ZeroDivisionError):
                return self.fragile(x[:, :3])
            return x + self.conv(x)

    assert record(sequence(block(), Fallback(), block()), SHAPE).blocks == ["1", "2", "3"]


@pytest.mark.parametrize("context", [torch.inference_mode, torch.enable_grad, torch.no_grad])
def test_inside_other_contexts(context):
    net = sequence(block(lambda b, x, f: x.add_(f).relu_()), block())
    expected = record(net, SHAPE)
    with context():
        assert record(net, SHAPE).to_dict() == expected.to_dict()
        assert record(net, torch.randn(SHAPE)).blocks == expected.blocks


def test_autocast():
    net = Net(LAYOUTS["NCHW"], lambda b, x, f: x + f * b.tiny)
    with torch.autocast("cpu", torch.bfloat16):
        spp = record(net, SHAPE)
    np.testing.assert_allclose(spp.res_avg_var, record(net, SHAPE).res_avg_var, rtol=0.05)  # bfloat16: 3 digits


def refuse(*_):
    raise AssertionError("compiled")


def test_compiled_models_are_measured_uncompiled():
    net = sequence(block(), block())
    expected = record(net, SHAPE).to_dict()
    assert record(torch.compile(net, backend=refuse), SHAPE).to_dict() == expected
    net.compile(backend=refuse)
    inner = net[1]
    inner.compile(backend=refuse)
    compiled = net._compiled_call_impl, inner._compiled_call_impl
    assert record(net, SHAPE).to_dict() == expected
    assert (net._compiled_call_impl, inner._compiled_call_impl) == compiled


def test_code_that_is_already_compiled_is_not_run():
    net = sequence(block(), block())
    expected = record(net, SHAPE).to_dict()
    net.compile(backend="eager")
    net[2].compile(backend="eager")
    with torch.no_grad():
        net(torch.randn(SHAPE))
    assert record(net, SHAPE).to_dict() == expected


def test_compiled_parts_are_measured():
    plain = sequence(block(), block())
    net = nn.Sequential(plain[0], torch.compile(plain[1], backend=refuse), plain[2])
    assert record(net, SHAPE).avg_var == record(plain, SHAPE).avg_var


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("make", [torch.jit.script, lambda net: torch.jit.trace(net, torch.randn(SHAPE))])
def test_torchscript_is_refused(make):
    net = nn.Sequential(make(nn.Conv2d(3, 8, 1)))
    with pytest.raises(UsageError, match="TorchScript"):
        record(net, SHAPE)


def test_gradients_and_parameters_are_left_alone():
    net = sequence(block())
    before = [(p, p.clone(), p.grad, p.requires_grad, p._version) for p in net.parameters()]
    record(net, SHAPE)
    for p, value, grad, requires_grad, version in before:
        assert (p.grad, p.requires_grad, p._version) == (grad, requires_grad, version)
        assert torch.equal(p, value)


@pytest.fixture
def quick_collection():
    """What was there before is not looked at: collecting it 14 times takes a minute at the end of a long session."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def test_no_activation_outlives_its_use(quick_collection):
    """When a block begins, only its input is left of those before: what is kept does not grow with depth."""
    alive, outputs = [], []

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.gamma = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Parameter(torch.ones(8, 1, 1))

        def forward(self, x):
            gc.collect()
            alive.append(sum(ref() is not None for ref in outputs))
            f = self.b(torch.relu(self.a(x))) * self.gamma
            out = x + f
            outputs.extend((weakref.ref(f), weakref.ref(out)))
            return out

    record(sequence(*(Plain() for _ in range(8))), SHAPE)
    assert alive == [0] + [1] * 7
    gc.collect()
    assert all(ref() is None for ref in outputs)


def test_sums_of_one_function_are_let_go(quick_collection):
    alive, sums = [], []

    class Inline(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(6))

        def forward(self, x):
            for layer in self.layers:
                x = x + layer(x)
                sums.append(weakref.ref(x))
                gc.collect()
                alive.append(sum(ref() is not None for ref in sums))
            return x

    assert len(record(Inline(), SHAPE).rows) == 6
    assert alive == [1] * 6
