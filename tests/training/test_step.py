"""One step: exact micro-batching, all or nothing, clipping and precision."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny_runs import network

import normfree
from normfree import RunFailed
from normfree.data import Batch
from normfree.errors import NotFinite
from normfree.nn import batch_norms
from normfree.optim import EMA, OptimConfig
from normfree.training import TrainStep


class CrossEntropy:
    """In the precision of the logits."""

    def loss(self, output, batch):
        return F.cross_entropy(output, batch.labels, label_smoothing=0.1)

    def correct(self, output, batch):
        return (output.argmax(1) == batch.labels).sum()


class BadGradient(CrossEntropy):
    """A finite loss with a gradient that is not: the square root's at 0."""

    def loss(self, output, batch):
        return super().loss(output, batch) + (output - output.detach()).abs().sqrt().sum()


class Overflowing(CrossEntropy):
    """A finite loss whose gradient is more than float16 holds."""

    def loss(self, output, batch):
        return super().loss(output, batch) + (output - output.detach()).sum() * 1e30


def batches(count: int, size: int = 10, dtype: torch.dtype = torch.float32) -> list[Batch]:
    return [
        Batch(torch.randn(size, 1, 8, 8, dtype=dtype), torch.randint(10, (size,)), torch.arange(size))
        for _ in range(count)
    ]


def build(model, losses=None, *, ema: bool = True, clipping: float | None = 0.02, **options) -> TrainStep:
    optimizer = OptimConfig(clipping=clipping, weight_decay=1e-2).build(model.train())
    return TrainStep(model, losses or CrossEntropy(), optimizer, ema=EMA(model, 0.9) if ema else None, **options)


def state(step: TrainStep) -> dict[str, torch.Tensor]:
    """Parameters, momentum and averages."""
    names = {parameter: name for name, parameter in step.model.named_parameters()}
    momentum = {
        f"momentum {names[p]}": s["momentum_buffer"]
        for p, s in step.optimizer.state.items()
        if s.get("momentum_buffer") is not None
    }
    averages = {f"average {name}": value for name, value in step.ema.average.items()} if step.ema else {}
    return {k: v.detach().clone() for k, v in {**dict(step.model.named_parameters()), **momentum, **averages}.items()}


def identical(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 5, 10, 99])  # 10 images: ragged, even, and more than there are
@pytest.mark.parametrize("clipping", [None, 0.02])
def test_micro_batches_give_the_same_update(micro_batch, clipping):
    model, data = network().double(), batches(3, dtype=torch.float64)
    steps = [
        build(copy.deepcopy(model), clipping=clipping, micro_batch=size, clipping_eps=1e-3)
        for size in (None, micro_batch)
    ]
    for batch in data:
        whole, pieces = (step(batch, 0.1) for step in steps)
        assert whole.loss == pytest.approx(pieces.loss, rel=1e-12)
        assert (whole.correct, whole.images, whole.clipped) == (pieces.correct, pieces.images, pieces.clipped)
    before, whole, pieces = dict(model.named_parameters()), *map(state, steps)
    for name, value in whole.items():
        # the same sums in another order: float64 rounding; the norm, since single entries may cancel
        assert (pieces[name] - value).norm() <= 1e-12 * value.norm()
    assert all(not torch.equal(whole[name], value) for name, value in before.items())


def test_what_a_step_reports():
    step, (batch,) = build(network(), micro_batch=3), batches(1)
    with torch.no_grad():
        output = step.model(batch.images)
    result = step(batch, 0.1)
    assert result.images == 10
    assert result.correct == int(CrossEntropy().correct(output, batch))
    assert result.loss == pytest.approx(CrossEntropy().loss(output, batch).item(), rel=1e-5)  # float32 sums
    assert type(result.loss) is float
    assert type(result.correct) is int


@pytest.mark.parametrize("clipping", [None, 0.02])
@pytest.mark.parametrize("micro_batch", [None, 4])
@pytest.mark.parametrize("bad", ["image", "last image", "infinite loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(clipping, micro_batch, bad):
    model, data = network(), batches(4)
    step, control = (build(copy.deepcopy(model), clipping=clipping, micro_batch=micro_batch) for _ in range(2))
    for batch in data[:2]:  # so that there is momentum
        step(batch, 0.1)
        control(batch, 0.1)
    before, good = state(step), step.losses
    images = data[2].images.clone()
    if bad == "image":
        images[0, 0, 0, 0] = float("nan")
    elif bad == "last image":
        images[-1] = float("nan")
    elif bad == "infinite loss":
        images[0] = 3e38
    else:
        step.losses = BadGradient()
    with pytest.raises(RunFailed, match="gradient is not finite" if bad == "gradient" else "the loss is (nan|inf)"):
        step(Batch(images, data[2].labels, data[2].indices), 0.5)
    assert identical(state(step), before)
    step.losses = good
    step(data[3], 0.1)
    control(data[3], 0.1)
    assert identical(state(step), state(control))  # nothing of the bad step is left in gradients or averages


@pytest.mark.parametrize("lr", [0.25, 0.0])
def test_learning_rate_reaches_every_group(lr):
    step, (batch, other) = build(network()), batches(2)
    step(other, 0.1)
    before = state(step)
    step(batch, lr)
    assert len(step.optimizer.param_groups) > 3
    assert {group["lr"] for group in step.optimizer.param_groups} == {lr}
    after = state(step)
    moved = {k for k in after if not torch.equal(before[k], after[k])}
    parameters = {name for name, _ in step.model.named_parameters()}
    assert moved & parameters == (parameters if lr else set())
    assert all(k in moved for k in after if k.startswith("momentum"))


@pytest.mark.parametrize(("clipping", "least", "most"), [(1e-6, 0.95, 1.0), (1e6, 0.0, 0.0), (0.02, 0.01, 0.99)])
def test_fraction_clipped(clipping, least, most):
    step, (batch,) = build(network(), clipping=clipping), batches(1)
    assert least <= step(batch, 0.1).clipped <= most


def test_without_clipping_there_is_no_fraction():
    model, (batch,) = network(), batches(1)
    free, loose = build(copy.deepcopy(model), clipping=None), build(copy.deepcopy(model), clipping=1e6)
    assert free(batch, 0.1).clipped is None
    assert loose(batch, 0.1).clipped == 0.0
    assert identical(state(free), state(loose))  # a threshold that is never reached clips nothing


def test_average_follows_the_weights():
    step, data = build(network()), batches(3)
    expected = {name: p.detach().clone() for name, p in step.model.named_parameters()}
    for t, batch in enumerate(data):
        step(batch, 0.1)
        decay = min(0.9, (1 + t) / (10 + t))
        for name, p in step.model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * p.detach()
    for name, value in expected.items():
        # three float32 roundings
        torch.testing.assert_close(step.ema.average[name], value, rtol=1e-5, atol=1e-6)


def test_a_step_needs_no_average():
    with_average, without = (build(copy.deepcopy(m), ema=ema) for m in [network()] for ema in (True, False))
    (batch,) = batches(1)
    with_average(batch, 0.1)
    without(batch, 0.1)
    assert identical({k: v for k, v in state(with_average).items() if not k.startswith("average")}, state(without))


def test_bfloat16_keeps_float32_where_it_matters():
    model, data = network(activation="silu"), batches(2, size=64)  # ReLUs near 0 would switch on or off
    # not clipped: whether a unit is at the threshold may depend on the rounding
    steps = {
        precision: build(copy.deepcopy(model), precision=precision, clipping=None)
        for precision in ("float32", "bfloat16")
    }
    seen = []
    steps["bfloat16"].model.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    results = {precision: [step(batch, 0.1) for batch in data] for precision, step in steps.items()}
    assert set(seen) == {torch.bfloat16}
    full, half = (state(steps[precision]) for precision in ("float32", "bfloat16"))
    assert {value.dtype for value in half.values()} == {torch.float32}
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    moves = [torch.cat([s[n].flatten() for n, _ in model.named_parameters()]) - start for s in (full, half)]
    # bfloat16 rounds to 2^-9 = 0.2 %, and a dozen layers forward and back add up to a few per cent
    assert (moves[1] - moves[0]).norm() < 0.05 * moves[0].norm()
    assert results["bfloat16"][1].loss == pytest.approx(results["float32"][1].loss, rel=0.02)
    assert not torch.equal(*moves)


def test_parameters_without_a_gradient_stay():
    model, (batch,) = network(), batches(1)
    frozen = dict(model.named_parameters())["stem.conv.weight"].requires_grad_(False)
    before, step = frozen.clone(), build(model)
    step(batch, 0.1)
    assert torch.equal(frozen, before)


def test_steps_that_are_not_finite_may_be_left_out_up_to_a_limit():
    model, data = network(), batches(6)
    step, control = build(copy.deepcopy(model), skip_nonfinite=2), build(copy.deepcopy(model))
    bad = Batch(torch.full_like(data[0].images, float("nan")), data[0].labels, data[0].indices)
    for batch in data[:2]:
        step(batch, 0.1)
        control(batch, 0.1)
    for _ in range(2):
        result = step(bad, 0.1)
        assert result.left_out == "the loss is nan; the first output that is not finite is that of the images"
        assert (result.correct, result.clipped) == (0, None)
    assert identical(state(step), state(control))
    assert step(data[2], 0.1).left_out is None  # the count starts anew
    control(data[2], 0.1)
    assert identical(state(step), state(control))
    step.losses = BadGradient()
    for _ in range(2):
        assert step(data[3], 0.1).left_out == "a gradient is not finite; parameters are as before the step"
    with pytest.raises(NotFinite, match="a gradient is not finite"):
        step(data[3], 0.1)
    assert identical(state(step), state(control))


@pytest.mark.parametrize("bad", ["image", "gradient", "float16"])
def test_a_step_left_out_leaves_running_statistics_alone(bad):
    """BatchNorm's, which its forward passes change before the loss is known."""
    options = dict(depths=(1, 1), widths=(8, 16), stem="3x3")
    model, data = normfree.create_model("bn_resnet50", num_classes=10, in_chans=1, **options), batches(3)
    limits = dict(precision="float16") if bad == "float16" else dict(skip_nonfinite=1)
    step = build(model, clipping=None, **limits)
    step(data[0], 0.1)
    while step.skipped:  # float16 finds its loss scale
        step(data[0], 0.1)
    statistics = {name: value.clone() for name, value in model.named_buffers() if "running" in name or "num_" in name}
    assert len(statistics) >= 3 * len(batch_norms(model)) > 0
    images = data[1].images
    if bad == "image":
        images[0, 0, 0, 0] = float("nan")
    elif bad == "gradient":
        step.losses = BadGradient()
    else:
        step.losses = Overflowing()
    before = state(step)
    step(Batch(images, data[1].labels, data[1].indices), 0.1)
    assert step.skipped == 1
    assert identical(state(step), before)
    assert identical({name: value for name, value in model.named_buffers() if name in statistics}, statistics)
    step.losses = CrossEntropy()
    step(data[2], 0.1)
    moved = {name: value for name, value in model.named_buffers() if name in statistics}
    assert all(not torch.equal(moved[name], value) for name, value in statistics.items())


@pytest.mark.slow
@pytest.mark.full
def test_a_compiled_step_is_the_same():
    model, data = network(), batches(3)
    plain, compiled = build(copy.deepcopy(model)), build(copy.deepcopy(model), compiled=True)
    for batch in data:
        a, b = plain(batch, 0.1), compiled(batch, 0.1)
        assert a.loss == pytest.approx(b.loss, rel=1e-5)  # float32 sums in another order
    before, one, other = state(build(copy.deepcopy(model))), state(plain), state(compiled)
    assert one.keys() == other.keys()  # names are those of the plain network
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-5)
    assert any(not torch.equal(one[name], value) for name, value in before.items())
