"""The step by Triton against torch's operations. Not collected: test_triton.py runs it in a process of its own."""

import copy
import math
import warnings

import pytest
import torch
from kernels.triton_device import DEVICE, INTERPRETED, take
from torch import nn

from normfree.errors import NotFinite
from normfree.functional import unitwise_norm
from normfree.kernels import DeviceUpdate, agc_sgd_ema_, optimizer, triton_step
from normfree.nn import WSConv2d
from normfree.optim import AGC, EMA, FusedStep, param_groups

BLOCK = triton_step.BLOCK
# rows of one element, of 27, of full and of begun blocks, vectors, scalars, nothing at all
SHAPES = [(4, 3, 3, 3), (5,), (), (1,), (2, 2 * BLOCK + 4), (BLOCK + 3,), (0, 3), (4, 0), (3, 1, 1, 1), (2, BLOCK)]
RULES = [dict(momentum=0.9, nesterov=True), dict(momentum=0.9, dampening=0.1), dict(momentum=0.0)]


@pytest.fixture(autouse=True)
def by_triton(monkeypatch):
    if INTERPRETED:
        take(monkeypatch, optimizer)


def columns(shapes=SHAPES):
    """Parameters, gradients, momentum buffers, averages."""
    return [[(torch.randn(shape) * 0.1).to(DEVICE) for shape in shapes] for _ in range(4)]


def copies(tensors, dtype=torch.float32):
    return [[None if t is None else t.clone().to(dtype) for t in column] for column in tensors]


def both(tensors, **how):
    """A step of the tensors by Triton, and of copies in float64 with torch's operations."""
    theirs = copies(tensors, torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizer, "_path", lambda *_: optimizer.portable)
        expected = agc_sgd_ema_(*theirs, **how)
    update = agc_sgd_ema_(*tensors, **how)
    assert isinstance(update, DeviceUpdate)
    assert update.units == expected.units
    assert update.clipped == expected.clipped
    assert update.ratio == pytest.approx(expected.ratio, rel=1e-5, nan_ok=True)
    for mine, their in zip(tensors, theirs, strict=True):
        for a, b in zip(mine, their, strict=True):
            if a is not None:
                # float32: half a unit in the last place for each of the few operations on an element
                torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=1e-6, equal_nan=True)
    return update


def options(count, **changed):
    """Clipping that is met by some units only; every fourth parameter is not clipped."""
    clipping = [None if i % 4 == 3 else 0.1 * (i + 1) for i in range(count)]
    return dict(lr=0.1, weight_decay=[0.01 * i for i in range(count)], clipping=clipping, ema_decay=0.99) | changed


@pytest.mark.parametrize("rule", RULES, ids=["nesterov", "dampened", "plain"])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("check", [False, True])
def test_the_portable_path_in_float64(rule, first, check):
    tensors = columns()
    grads = copies(tensors[1:2])[0]
    write = first == check
    how = options(len(SHAPES), first=first, write_grads=write, error_if_nonfinite=check, **rule)
    how["ema_decay"] = 0.3 if write else 0.99  # both of lerp's forms
    update = both(tensors, **how)
    assert 0 < sum(update.clipped) < sum(update.units)
    assert write or all(torch.equal(a, b) for a, b in zip(tensors[1], grads, strict=True))


def test_many_steps_with_other_numbers_each():
    tensors, each = columns(), dict(momentum=0.9, nesterov=True)
    for step in range(4):
        tensors[1] = [(torch.randn(shape) * 0.1 * step).to(DEVICE) for shape in SHAPES]
        lr = [0.1 / (i + step + 1) for i in range(len(SHAPES))]
        both(tensors, **options(len(SHAPES), lr=lr, first=step == 0, ema_decay=(1 + step) / (10 + step), **each))


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-8, 1e8, 1e17])
@pytest.mark.parametrize("weight", [0.0, 1e-30, 1.0, 1e15])
def test_norms_of_any_size(size, weight):
    tensors = columns([(3, 40), (7,)])
    tensors[0] = [t.sign() * weight for t in tensors[0]]
    tensors[1] = [t.sign() * size for t in tensors[1]]
    assert sum(both(tensors, lr=1e-3, clipping=0.01, momentum=0.9, ema_decay=0.9, weight_decay=1e-4).clipped) in (0, 4)


@pytest.mark.parametrize("layout", ["channels last", "unaligned", "transposed out"])
def test_layouts(layout):
    tensors = columns([(6, 8, 3, 3)])
    if layout == "channels last":
        tensors = [[t.contiguous(memory_format=torch.channels_last) for t in column] for column in tensors]
    elif layout == "unaligned":  # one float behind sixteen bytes
        tensors = [[torch.randn(1 + t.numel(), device=DEVICE)[1:].view(t.shape) for t in column] for column in tensors]
    else:  # a table of mixed alignments: only the average is not aligned
        tensors[3] = [torch.randn(1 + 432, device=DEVICE)[1:].view(6, 8, 3, 3)]
    both(tensors, **options(1, momentum=0.9, nesterov=True))


def test_without_gradients_without_averages():
    tensors = columns([(4, 3)] * 4)
    tensors[1][1] = tensors[2][1] = tensors[3][2] = tensors[1][3] = tensors[3][3] = None
    alone = tensors[0][3].clone()
    update = both(tensors, **options(4, momentum=0.9, clipping=0.01))
    assert torch.equal(tensors[0][3], alone)
    assert update.counts == update.units == [4, 0, 4, 0]
    assert update.norms.shape == (8,)
    nothing = agc_sgd_ema_(tensors[0], [None] * 4, None, None, lr=0.1, clipping=0.01)
    assert nothing.clipped == nothing.units == nothing.ratio == [0] * 4


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e30])
@pytest.mark.parametrize("where", [0, 2, 4])
def test_nothing_changes_where_a_gradient_is_not_finite(value, where):
    tensors = columns()
    tensors[1][where].view(-1)[-1] = value  # the square of 1e30 is not finite in float32
    before = copies(tensors)
    versions = [t._version for column in tensors for t in column]
    how = options(len(SHAPES), momentum=0.9, nesterov=True, write_grads=True)
    with pytest.raises(NotFinite, match="a gradient is not finite; parameters are as before the step"):
        agc_sgd_ema_(*tensors, **how)
    assert versions == [t._version for column in tensors for t in column]
    for column, expected in zip(tensors, before, strict=True):
        for a, b in zip(column, expected, strict=True):
            assert torch.equal(a.view(torch.int32), b.view(torch.int32))
    if abs(value) != 1e30:
        both(tensors, **how | dict(error_if_nonfinite=False))
        assert not tensors[0][where].isfinite().all()


def test_what_is_told_of_units():
    params, grads, *_ = columns([(4, 3), (5,), (2, 3)])
    norms = torch.cat([unitwise_norm(g).flatten() for g in grads])
    weights = torch.cat([unitwise_norm(p).flatten() for p in params])
    update = agc_sgd_ema_(params, grads, None, lr=0.1, clipping=[0.5, None, 1.0])
    torch.testing.assert_close(update.norms, norms)
    torch.testing.assert_close(update.ratios, norms / weights)
    threshold = torch.tensor([0.5] * 4 + [math.inf] + [1.0] * 2, device=DEVICE)
    assert torch.equal(update.flags, norms / weights > threshold)
    assert update.counts == [4, 1, 2]
    assert update.units == [4, 0, 2]


class Toy(nn.Module):
    """A convolution, one whose average is not kept apart (frozen), and a classifier that is not clipped."""

    def __init__(self):
        super().__init__()
        self.conv, self.fixed, self.head = WSConv2d(3, 6, 3), WSConv2d(6, 4, 1), nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.fixed.requires_grad_(False)

    def forward(self, x):
        self.seen += 1
        return self.head(self.fixed(self.conv(x).relu()).mean((2, 3)))


def sgd(model):
    groups = param_groups(model, weight_decay=1e-2, clipping=0.05, roles={"head.weight": "classifier"})
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)


@pytest.mark.parametrize("channels_last", [False, True])
def test_training_is_that_of_agc_sgd_and_ema(channels_last):
    model = Toy().to(DEVICE, memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    other = copy.deepcopy(model)
    one, two = sgd(model), sgd(other)
    ema, reference = EMA(model, 0.9), EMA(other, 0.9)
    fused, agc = FusedStep(one, ema), AGC(two)
    for step in range(5):
        for group in (*one.param_groups, *two.param_groups):
            group["lr"] = 0.1 / (1 + step)
        x = torch.randn(2, 3, 6, 6).to(DEVICE)
        for net in (model, other):
            net.zero_grad()
            (net(x).square().mean() * 30).backward()
        for p, q in zip(other.parameters(), model.parameters(), strict=True):
            p.grad = None if q.grad is None else q.grad.clone()  # the same gradients: what is compared is the step
        assert fused.possible()
        got, expected = fused.step(), agc.step()
        reference.update()
        assert got.units == expected.units
        assert got.fraction == expected.fraction
        assert got.total_fraction == expected.total_fraction
        torch.testing.assert_close(got.gradient_norm, expected.gradient_norm)
        for (p, a), (q, b) in zip(got.by_tensor(), expected.by_tensor(), strict=True):
            assert p.shape == q.shape
            assert (a.units, a.clipped) == (b.units, b.clipped)
            assert a.largest_ratio == pytest.approx(b.largest_ratio, rel=1e-5)
        for name, p in model.named_parameters():
            torch.testing.assert_close(p, other.get_parameter(name), rtol=1e-5, atol=1e-7)
        for name, average in ema.average.items():
            torch.testing.assert_close(average, reference.average[name], rtol=1e-5, atol=1e-7)
        assert ema.steps == reference.steps == step + 1
    assert 0 < expected.total_fraction < 1


def test_a_gradient_that_is_not_finite_leaves_the_optimizer_as_it_was():
    model = Toy().to(DEVICE)
    one, ema = sgd(model), EMA(model, 0.9)
    fused = FusedStep(one, ema)
    model(torch.randn(2, 3, 6, 6).to(DEVICE)).sum().backward()
    next(model.parameters()).grad.view(-1)[0] = math.nan
    before, averages = copy.deepcopy(model.state_dict()), copy.deepcopy(ema.state_dict())
    with pytest.raises(NotFinite):
        fused.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, averages["average"][name]) for name, value in ema.average.items())
    assert ema.steps == 0
    assert not one.state  # the momentum that was made for the step has no value


def test_the_trial_on_a_device(monkeypatch):
    random = torch.get_rng_state()
    triton_step.check(torch.device(DEVICE))
    assert torch.equal(random, torch.get_rng_state())
    right = triton_step.run

    def wrong(params, *others):
        update = right(params, *others)
        params[0][-1, -1] += 0.01
        return update

    monkeypatch.setattr(triton_step, "run", wrong)
    with pytest.raises(RuntimeError, match="differ"):
        triton_step.check(torch.device(DEVICE))
    optimizer._triton.cache_clear()
    with pytest.warns(UserWarning, match="takes torch's operations on .*differ"):
        assert optimizer._triton(torch.device(DEVICE)) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert optimizer._triton(torch.device(DEVICE)) is None  # once
    optimizer._triton.cache_clear()
