"""The one-pass step against AGC, torch.optim.SGD and EMA, and against itself in float64."""

import copy
import math

import golden_data as gd
import numpy as np
import pytest
import torch
from kernels import triton_device  # tests/kernels
from optim import test_golden as authors  # tests/optim: their toy tree
from torch import nn

from normfree.errors import RunFailed, UsageError
from normfree.functional import clip_coefficient, clip_gradient, momentum_step, moving_average, unitwise_norm
from normfree.kernels import agc_sgd_ema_, library, optimizer
from normfree.nn import WSConv2d
from normfree.optim import AGC, EMA, ema_decay, param_groups, warmup_cosine

# rows in blocks, vectors, a scalar, rows and vectors that are cut into segments, nothing at all
SHAPES = [(8, 4, 3, 3), (5,), (), (3, 70_001), (150_000,), (7, 1000), (300, 257), (0, 3), (4, 0), (1,), (2, 65536)]
if triton_device.INTERPRETED:  # milliseconds for each row
    SHAPES = [(4, 4, 3, 3), (5,), (), (2, 1101), (1200,), (0, 3), (4, 0), (1,), (2, 1028)]
RULES = [dict(momentum=0.9, nesterov=True), dict(momentum=0.9, dampening=0.1), dict(momentum=0.0)]


def columns(shapes=SHAPES, dtype=torch.float32):
    """Parameters, gradients, momentum buffers, averages."""
    return [[(torch.randn(shape) * 0.1).to(dtype) for shape in shapes] for _ in range(4)]


def copies(tensors, dtype=torch.float32):
    return [[t.clone().to(dtype) for t in column] for column in tensors]


def options(count, **changed):
    """Clipping that is met by some units only; every fourth parameter is not clipped."""
    clipping = [None if i % 4 == 3 else 0.1 * (i + 1) for i in range(count)]
    return dict(lr=0.1, weight_decay=[0.01 * i for i in range(count)], clipping=clipping, ema_decay=0.99) | changed


def close(mine, theirs, tolerance):
    for column, expected in zip(mine, theirs, strict=True):
        for a, b in zip(column, expected, strict=True):
            torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("rule", RULES, ids=["nesterov", "dampened", "plain"])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fused", "portable"])
def test_each_path_is_the_three_equations(compiled, rule, first, dtype):
    before = columns(dtype=dtype)
    mine, how = copies(before, dtype), options(len(SHAPES), first=first, **rule)
    agc_sgd_ema_(*mine, **how)
    expected: list[list] = [[], [], [], []]
    for i, (weight, grad, buffer, average) in enumerate(zip(*copies(before, torch.float64), strict=True)):
        clipped = clip_gradient(weight, grad, how["clipping"][i])
        old = None if first or rule["momentum"] == 0 else buffer
        numbers = dict(lr=how["lr"], weight_decay=how["weight_decay"][i], nesterov=False) | rule
        after, momentum = momentum_step(weight, clipped, old, **numbers)
        row = after, grad, buffer if rule["momentum"] == 0 else momentum, moving_average(average, after, 0.99)
        for column, value in zip(expected, row, strict=True):
            column.append(value)
    close(mine, expected, 1e-6 if dtype is torch.float32 else 1e-12)


@pytest.mark.parametrize("rule", RULES, ids=["nesterov", "dampened", "plain"])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("write_grads", [False, True])
@pytest.mark.parametrize("check", [False, True])
def test_float32_is_the_portable_path_in_float64(compiled, threads, rule, first, write_grads, check):
    before = columns()
    mine, theirs = copies(before), copies(before, torch.float64)
    how = options(len(SHAPES), first=first, write_grads=write_grads, error_if_nonfinite=check, **rule)
    how["ema_decay"] = 0.3 if write_grads else 0.99  # both of lerp's forms
    assert optimizer.supported(*mine)
    assert not optimizer.supported(*theirs)
    update = agc_sgd_ema_(*mine, **how)
    torch.set_num_threads(1)  # many small operations
    expected = agc_sgd_ema_(*theirs, **how)
    close(mine, theirs, 1e-6)
    assert update.clipped == expected.clipped
    assert update.units == expected.units
    assert update.ratio == pytest.approx(expected.ratio, rel=1e-5)
    assert 0 < sum(update.clipped) < sum(update.units)
    if not write_grads:
        close(mine[1:2], before[1:2], 0)
    if rule["momentum"] == 0:
        close(mine[2:3], before[2:3], 0)


@pytest.mark.parametrize("rule", RULES, ids=["nesterov", "dampened", "plain"])
def test_five_steps_of_torchs_optimizer(either_path, rule):
    params, _, buffers, averages = columns()
    theirs = [nn.Parameter(p.clone()) for p in params]
    their_averages = [a.clone() for a in averages]
    how = options(len(SHAPES), **rule)
    groups = [
        dict(params=[p], weight_decay=w, clipping=c)
        for p, w, c in zip(theirs, how["weight_decay"], how["clipping"], strict=True)
    ]
    sgd = torch.optim.SGD(groups, lr=0.1, **rule)
    agc = AGC(sgd)
    for step in range(5):
        grads = [torch.randn(shape) * 0.05 for shape in SHAPES]
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g.clone()
        statistics = agc.step()
        torch._foreach_lerp_(their_averages, [p.detach() for p in theirs], 1 - 0.99)
        update = agc_sgd_ema_(params, grads, buffers, averages, first=step == 0, **how)
        assert sum(update.clipped) == sum(int(c) for c in statistics.clipped_units.values())
        assert sum(update.units) == sum(statistics.units.values())
        close([params, averages], [[p.detach() for p in theirs], their_averages], 1e-6)
        if rule["momentum"]:
            close([buffers], [[sgd.state[p]["momentum_buffer"] for p in theirs]], 1e-6)


def test_the_clipping_is_the_papers(either_path):
    weight, grad = torch.randn(6, 5, 3, 3), torch.randn(6, 5, 3, 3)
    weight[0] = 0  # its norm is bounded by eps
    grad[1] = 0  # its coefficient is 1
    ratio = unitwise_norm(grad) / unitwise_norm(weight).clamp(min=1e-3)
    threshold = ratio.flatten().sort().values[3].item() * 1.0001
    coefficient = clip_coefficient(unitwise_norm(weight), unitwise_norm(grad), threshold)
    p, g = weight.clone(), grad.clone()
    update = agc_sgd_ema_([p], [g], None, lr=0.5, clipping=threshold, write_grads=True)
    torch.testing.assert_close(g, grad * coefficient)
    torch.testing.assert_close(p, weight - 0.5 * grad * coefficient)
    assert update.clipped == [2]
    assert update.units == [6]
    assert update.ratio == pytest.approx([ratio.max().item()])


def test_channels_last_and_views(either_path):
    before = [[t.contiguous(memory_format=torch.channels_last) for t in c] for c in columns([(6, 5, 3, 3)])]
    plain = copies(before)
    plain = [[t.contiguous() for t in column] for column in plain]
    agc_sgd_ema_(*before, **options(1, momentum=0.9))
    agc_sgd_ema_(*plain, **options(1, momentum=0.9))
    close(before, plain, 1e-6)
    held = torch.randn(4, 103)  # unaligned pieces of one memory
    mine = [[row[3:]] for row in held]
    alone = copies(mine)
    agc_sgd_ema_(*mine, **options(1, momentum=0.9))
    agc_sgd_ema_(*alone, **options(1, momentum=0.9))
    close(mine, alone, 1e-6)


def test_layouts_that_differ_take_the_portable_path(compiled):
    params, grads, buffers, averages = columns([(6, 5, 3, 3)])
    theirs = copies([params, grads, buffers, averages])
    grads[0] = grads[0].contiguous(memory_format=torch.channels_last)
    assert not optimizer.supported(params, grads, buffers, averages)
    assert not optimizer.supported([params[0][:, ::2]])
    assert not optimizer.supported([params[0].bfloat16()])
    agc_sgd_ema_(params, grads, buffers, averages, **options(1, momentum=0.9))
    agc_sgd_ema_(*theirs, **options(1, momentum=0.9))
    close([params, buffers, averages], [theirs[0], theirs[2], theirs[3]], 1e-6)


def test_without_gradient_without_average(either_path):
    params, grads, buffers, averages = columns([(4, 3)] * 3)
    before = copies([params, grads, buffers, averages])
    grads[1] = buffers[1] = averages[2] = None
    update = agc_sgd_ema_(params, grads, buffers, averages, **options(3, momentum=0.9, clipping=0.01))
    assert torch.equal(params[1], before[0][1])
    torch.testing.assert_close(averages[1], before[3][1].lerp(before[0][1], 0.01))
    assert not torch.equal(params[2], before[0][2])
    assert update.units == [4, 0, 4]
    assert update.clipped[1] == update.ratio[1] == 0
    agc_sgd_ema_(params, grads, buffers, None, **options(3, momentum=0.9))
    empty = agc_sgd_ema_([], [], [], [], lr=0.1, momentum=0.9)
    assert empty.clipped == empty.units == []


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", [i for i, shape in enumerate(SHAPES) if math.prod(shape)])
def test_nothing_changes_where_a_gradient_is_not_finite(either_path, value, where):
    tensors = columns()
    tensors[1][where].view(-1)[-1] = value
    before = copies(tensors)
    with pytest.raises(RunFailed, match="not finite"):
        agc_sgd_ema_(*tensors, **options(len(SHAPES), momentum=0.9, nesterov=True, write_grads=True))
    close(tensors, before, 0)
    agc_sgd_ema_(*tensors, **options(len(SHAPES), momentum=0.9, nesterov=True, error_if_nonfinite=False))
    assert not tensors[0][where].isfinite().all()


def test_denormal_and_large_gradients(either_path):
    params, _, buffers, averages = columns([(4, 40)])
    for size, clipped in ((1e-42, 0), (1e-25, 0), (1e15, 4)):
        grads = [torch.randn(4, 40).sign() * size]
        before = params[0].clone()
        update = agc_sgd_ema_(params, grads, buffers, averages, **options(1, momentum=0.0, weight_decay=0.0))
        assert update.clipped == [clipped]
        norms = unitwise_norm(params[0] - before)
        # lr times the clipping times the weights' norm, or next to nothing
        assert torch.allclose(norms, 0.01 * unitwise_norm(before) if clipped else norms * 0, rtol=1e-3, atol=1e-20)


def test_a_norm_beyond_float32_spoils_its_unit_and_no_other(either_path):
    """Its elements are finite: a coefficient of 0 would erase them without a word."""
    params, grads, buffers, averages = columns([(4, 40)])
    grads[0][1] = 1e30
    before = copies([params, grads])
    with pytest.raises(RunFailed, match="not finite"):
        agc_sgd_ema_(params, grads, buffers, averages, **options(1, momentum=0.9))
    close([params, grads], before, 0)
    agc_sgd_ema_(params, grads, buffers, averages, **options(1, momentum=0.9, error_if_nonfinite=False))
    assert params[0].isfinite().all(1).tolist() == [True, False, True, True]


def test_threads_do_not_change_a_bit(compiled):
    before, results = columns(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        for check in (True, False):
            mine = copies(before)
            how = options(len(SHAPES), momentum=0.9, nesterov=True, error_if_nonfinite=check)
            results.append((mine, agc_sgd_ema_(*mine, **how)))
    torch.set_num_threads(1)
    for mine, update in results[1:]:
        assert update == results[0][1]
        assert all(
            torch.equal(a, b) for x, y in zip(mine, results[0][0], strict=True) for a, b in zip(x, y, strict=True)
        )


def test_the_first_step_does_not_read_the_buffer(either_path):
    params, grads, buffers, averages = columns([(4, 3), (5,)])
    for buffer in buffers:
        buffer.fill_(math.nan)
    agc_sgd_ema_(params, grads, buffers, averages, **options(2, momentum=0.9, dampening=0.5, first=[True, True]))
    assert all(torch.isfinite(t).all() for t in params + buffers + averages)


def test_autograd_notices_the_step(either_path):
    p = nn.Parameter(torch.randn(3, 4))
    loss = (p * p).sum()
    before = p._version
    agc_sgd_ema_([p], [torch.randn(3, 4)], None, lr=0.1)
    assert p._version > before
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(grads=[]), "grads has 0 entries and params 1"),
        (dict(lr=[0.1, 0.2]), "lr has 2 entries and params 1"),
        (dict(clipping=0.0), "clipping"),
        (dict(clipping=[-1.0]), "clipping"),
        (dict(momentum=0.9), "needs a momentum buffer"),
        (dict(nesterov=True), "nesterov needs momentum"),
        (dict(averages=[]), "averages has 0 entries"),
    ],
)
def test_errors(changed, message):
    how = dict(params=[torch.ones(2)], grads=[torch.ones(2)], momentum_buffers=None, lr=0.1)
    with pytest.raises(UsageError, match=message):
        agc_sgd_ema_(**how | changed)


@pytest.mark.parametrize("clipping", ["0.01", "0.16"])
def test_six_steps_of_the_authors_optimizer(either_path, clipping):
    model = authors.Toy()
    named = model.theirs()
    params = [p for _, p in named]
    by_id = {id(p): g for g in param_groups(model, weight_decay=2e-5, clipping=float(clipping)) for p in g["params"]}
    each = {key: [by_id[id(p)][key] for p in params] for key in ("weight_decay", "clipping")}
    buffers, averages = [torch.empty_like(p) for p in params], [p.detach().clone() for p in params]
    for step in range(6):
        grads = []
        for theirs, p in named:
            shape = authors.GOLDEN[f"clip{clipping}/ema/{theirs}"].shape
            gradient = gd.rng(f"grad/{step}/{theirs}").standard_normal(shape) * (0.003 if step % 2 == 0 else 0.3)
            grads.append(authors.ours(gradient.astype(np.float32), p))
        lr, decay = warmup_cosine(step, peak=1.6, total_steps=100, warmup_steps=10), ema_decay(step, 0.99999)
        rule = dict(lr=lr, momentum=0.9, nesterov=True, ema_decay=decay, first=step == 0)
        agc_sgd_ema_(params, grads, buffers, averages, **rule, **each)
        authors.check(model, dict(model.named_parameters()), f"clip{clipping}/step{step}")
    averaged = {authors.NAMES[theirs]: a for (theirs, _), a in zip(named, averages, strict=True)}
    authors.check(model, averaged, f"clip{clipping}/ema")


def test_a_model_trains_as_with_agc_sgd_and_ema(either_path):
    model = nn.Sequential(WSConv2d(3, 8, 3), nn.ReLU(), WSConv2d(8, 4, 1))
    other = copy.deepcopy(model)
    groups = param_groups(model, weight_decay=1e-3, clipping=0.05)
    params = [p for group in groups for p in group["params"]]
    each = {key: [group[key] for group in groups for _ in group["params"]] for key in ("weight_decay", "clipping")}
    buffers, averages = [torch.zeros_like(p) for p in params], [p.detach().clone() for p in params]
    sgd = torch.optim.SGD(param_groups(other, weight_decay=1e-3, clipping=0.05), lr=0.1, momentum=0.9, nesterov=True)
    agc, ema = AGC(sgd), EMA(other)
    for step in range(4):
        x = torch.randn(2, 3, 6, 6)
        for net in (model, other):
            net.zero_grad()
            net(x).square().mean().backward()
        agc.step()
        ema.update()
        grads = [p.grad for p in params]
        agc_sgd_ema_(
            params,
            grads,
            buffers,
            averages,
            lr=0.1,
            momentum=0.9,
            nesterov=True,
            ema_decay=ema_decay(step, 0.99999),
            **each,
        )
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, other.get_parameter(name), rtol=1e-5, atol=1e-7)
        average = next(a for a, q in zip(averages, params, strict=True) if q is p)
        torch.testing.assert_close(average, ema.average[name], rtol=1e-5, atol=1e-7)


def test_the_tables_are_the_headers():
    """Fifteen and seven fields of eight bytes, without gaps."""
    assert optimizer._PARAMETER.itemsize == 15 * 8
    assert optimizer._SETTINGS.itemsize == 7 * 8
    assert library.INTERFACE == 5
