"""The learning rate's formula and the average's closed form."""

import copy
import io
import math

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from normfree import UsageError
from normfree.optim import EMA, FusedStep, OptimConfig, ema_decay, warmup_cosine, warmup_drops, warmup_exp_decay

EXACT = dict(rel=1e-12, abs=1e-15)  # float64 rounding


def test_warmup_is_linear_from_start_to_peak():
    rates = [warmup_cosine(step, peak=2.0, total_steps=100, warmup_steps=10, start=0.5) for step in range(11)]
    assert rates == pytest.approx([0.5 + 1.5 * step / 10 for step in range(11)], **EXACT)


def test_cosine_falls_from_peak_to_end():
    options = dict(peak=2.0, total_steps=110, warmup_steps=10, end=0.4)
    assert warmup_cosine(10, **options) == 2.0
    assert warmup_cosine(60, **options) == pytest.approx(1.2, **EXACT)  # half way
    assert warmup_cosine(35, **options) == pytest.approx(0.4 + 1.6 * (1 + math.sqrt(0.5)) / 2, **EXACT)
    assert warmup_cosine(110, **options) == pytest.approx(0.4, **EXACT)
    assert warmup_cosine(500, **options) == pytest.approx(0.4, **EXACT)  # and stays there
    falling = [warmup_cosine(step, **options) for step in range(10, 111)]
    assert falling == sorted(falling, reverse=True)


def test_agrees_with_torchs_scheduler():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.7)
    peer = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.1)
    for step in range(20):
        # it multiplies its last value step by step
        assert warmup_cosine(step, peak=0.7, total_steps=20, end=0.1) == pytest.approx(peer.get_last_lr()[0], rel=1e-10)
        optimizer.step()
        peer.step()


@pytest.mark.parametrize("options", [dict(total_steps=0), dict(total_steps=10, warmup_steps=10)])
def test_edges(options):
    rates = [warmup_cosine(step, peak=1.0, **options) for step in range(12)]
    assert all(0 <= rate <= 1 for rate in rates)
    assert rates[-1] == pytest.approx(0.0, **EXACT)


@pytest.mark.parametrize(("warmup", "total"), [(11, 10), (-1, 10)])
def test_bad_warmup_is_quoted(warmup, total):
    with pytest.raises(UsageError, match=rf"warmup_steps \(={warmup}\).*total_steps \(={total}\)"):
        warmup_cosine(0, peak=1.0, total_steps=total, warmup_steps=warmup)


def test_drops_are_tenfold_at_fractions_of_the_run():
    options = dict(peak=2.0, total_steps=100, warmup_steps=10, drops=(0.7, 0.9))
    rates = [warmup_drops(step, **options) for step in range(110)]
    expected = [0.2 * step for step in range(10)] + [2.0] * 60 + [0.2] * 20 + [0.02] * 20
    assert rates == pytest.approx(expected, **EXACT)
    papers = dict(peak=0.003, total_steps=30_000, drops=(0.7, 0.9))
    around = [warmup_drops(step, **papers) for step in (0, 20_999, 21_000, 26_999, 27_000, 29_999)]
    assert around == pytest.approx([0.003, 0.003, 3e-4, 3e-4, 3e-5, 3e-5], **EXACT)
    assert warmup_drops(50, **(options | dict(drops=(0.25,), factor=0.5))) == 1.0
    assert warmup_drops(5, **(options | dict(start=1.0))) == pytest.approx(1.5, **EXACT)


def test_drops_agree_with_torchs_scheduler():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.7)
    peer = torch.optim.lr_scheduler.MultiStepLR(optimizer, [12, 18], gamma=0.1)
    for step in range(24):
        found = warmup_drops(step, peak=0.7, total_steps=20, drops=(0.6, 0.9))
        assert found == pytest.approx(peer.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        peer.step()


def test_a_recipes_drops():
    config = OptimConfig(lr=0.4, lr_reference_batch=8, warmup_epochs=1, lr_drops=(0.5, 0.75))
    given = dict(batch_size=4, total_steps=20, steps_per_epoch=2)
    rates = [config.lr_at(step, **given) for step in range(20)]
    assert rates == pytest.approx([0, 0.1] + [0.2] * 8 + [0.02] * 5 + [0.002] * 5, **EXACT)
    assert OptimConfig(lr=0.2, warmup_epochs=0).lr_at(10, **given) == pytest.approx(0.1, **EXACT)  # half a cosine


@pytest.mark.parametrize("drops", [(0.9, 0.7), (0.5, 0.5), (0.0,), (1.0,), (-0.1,), (math.nan,), (1.5, 2)])
def test_bad_drops_are_quoted(drops):
    with pytest.raises(UsageError, match=r"optim\.lr_drops \(=\[.*\) must be rising numbers between 0 and 1"):
        OptimConfig(lr_drops=drops)


def test_drops_have_no_end():
    with pytest.raises(UsageError, match=r"optim\.lr_end \(=0\.1\) is the end of the cosine"):
        OptimConfig(lr_drops=(0.5,), lr_end=0.1)


@pytest.mark.parametrize(("warmup", "total"), [(11, 10), (-1, 10)])
def test_bad_warmup_before_drops_is_quoted(warmup, total):
    with pytest.raises(UsageError, match=rf"warmup_steps \(={warmup}\).*total_steps \(={total}\)"):
        warmup_drops(0, peak=1.0, total_steps=total, warmup_steps=warmup, drops=(0.5,))


EVERY = dict(peak=2.0, decay_steps=24.5, factor=0.9, warmup_steps=10)


def test_decay_every_so_often_is_the_released_schedule():
    """WarmupExpDecay, for each step: up to the end of the warm-up a line, then whole intervals since then."""
    for step in range(200):
        line = 0.5 + (2.0 - 0.5) * step / 10
        stairs = 2.0 * 0.9 ** math.floor((step - 10) / 24.5)
        expected = line if step <= 10 else stairs
        assert warmup_exp_decay(step, **EVERY, start=0.5) == pytest.approx(expected, **EXACT)


def test_decay_every_so_often_agrees_with_torchs_scheduler():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.9)
    for step in range(50):
        ours = warmup_exp_decay(step, peak=2.0, decay_steps=7, factor=0.9)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], **EXACT)
        optimizer.step()
        scheduler.step()


def test_a_recipes_decay():
    """0.97 every 2.4 epochs of 10 steps, after 5 epochs of warm-up; the learning rate is that of the batch."""
    optim = OptimConfig(lr=0.016, lr_reference_batch=256, lr_decay=0.97, lr_decay_epochs=2.4)
    options = dict(batch_size=512, total_steps=1000, steps_per_epoch=10)
    rates = [optim.lr_at(step, **options) for step in (0, 25, 50, 73, 74, 97, 98)]
    expected = [0, 0.5, 1, 1, 0.97, 0.97, 0.97**2]
    assert rates == pytest.approx([0.032 * share for share in expected], **EXACT)
    again = OptimConfig(lr=0.016, lr_decay=0.97, lr_decay_epochs=2.4, restarts=(500,))
    assert again.lr_at(500, **options) == 0.016  # a restart begins at the peak
    assert again.lr_at(524, **options) == pytest.approx(0.016 * 0.97, **EXACT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(lr_decay=0.97), "optim.lr_decay and optim.lr_decay_epochs must both be set, or both be null"),
        (dict(lr_decay_epochs=2.0), "optim.lr_decay and optim.lr_decay_epochs must both"),
        (dict(lr_decay=0.0, lr_decay_epochs=2.0), r"optim.lr_decay \(=0.0\) must be above 0"),
        (dict(lr_decay=0.97, lr_decay_epochs=2.0, lr_drops=(0.5,)), "optim.lr_drops and optim.lr_decay both say how"),
        (dict(lr_decay=0.97, lr_decay_epochs=2.0, lr_end=0.1), "the end of the cosine, which optim.lr_decay replaces"),
    ],
)
def test_a_decay_that_cannot_be_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        OptimConfig(**options)
    with pytest.raises(UsageError, match=r"decay_steps \(=0\) must be above 0"):
        warmup_exp_decay(3, peak=1.0, decay_steps=0, factor=0.9)


def test_ema_decay():
    assert [ema_decay(step, 0.99999) for step in range(4)] == pytest.approx([0.1, 2 / 11, 3 / 12, 4 / 13], **EXACT)
    assert ema_decay(10**9, 0.99999) == 0.99999
    assert ema_decay(100, 0.5) == 0.5


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)
        self.double()


def random_walk(model, steps, seed=0):
    """Moves every parameter and buffer, and yields copies of the state."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        with torch.no_grad():
            for value in model.state_dict().values():
                if value.is_floating_point():
                    value.add_(torch.randn(value.shape, dtype=value.dtype, generator=generator))
                else:
                    value.add_(1)
        yield copy.deepcopy(model.state_dict())


def close(a, b):
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-12, atol=1e-13)  # float64 rounding over a few steps


@pytest.mark.parametrize("warmup", [False, True])
def test_closed_form(warmup):
    model, decay = Net(), 0.4
    ema, states = EMA(model, decay, warmup=warmup), [copy.deepcopy(model.state_dict())]
    for state in random_walk(model, 6):
        states.append(state)
        ema.update()
    decays = [min(decay, (1 + t) / (10 + t)) if warmup else decay for t in range(6)]
    assert not warmup or decays[0] < decays[-1] == decay
    weights = [math.prod(decays)] + [(1 - d) * math.prod(decays[t + 1 :]) for t, d in enumerate(decays)]
    assert sum(weights) == pytest.approx(1.0, **EXACT)
    expected = {
        key: sum(w * state[key] for w, state in zip(weights, states, strict=True))
        for key, value in states[-1].items()
        if value.is_floating_point()
    }
    expected["norm.num_batches_tracked"] = states[-1]["norm.num_batches_tracked"]  # counters are taken over
    close(ema.average, expected)
    close(model.state_dict(), states[-1])  # untouched


def test_agrees_with_timm():
    model = Net()
    ema, peer = EMA(model, 0.9, warmup=False), ModelEmaV3(model, decay=0.9)
    for _ in random_walk(model, 5):
        ema.update()
        peer.update(model)
    close(ema.average, dict(peer.module.state_dict()))


def test_agrees_with_torch():
    model = Net()
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    peer = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    peer.update_parameters(model)  # its first update copies
    ema = EMA(model, 0.9, warmup=False)
    for _ in random_walk(model, 5):
        ema.update()
        peer.update_parameters(model)
    expected = dict(peer.module.state_dict())
    expected["norm.num_batches_tracked"] += 5  # it averages counters, and rounds
    close(ema.average, expected)


@pytest.mark.parametrize("fails", [False, True])
def test_applied_swaps_and_restores(fails):
    model = Net()
    ema = EMA(model, 0.5)
    for _ in random_walk(model, 3):
        ema.update()
    live, average = copy.deepcopy(model.state_dict()), copy.deepcopy(ema.average)
    pointers = [p.data_ptr() for p in model.parameters()]
    try:
        with ema.applied() as inside:
            assert inside is model
            close(model.state_dict(), average)
            if fails:
                raise KeyError("inside")
    except KeyError:
        assert fails
    assert all(torch.equal(value, live[key]) for key, value in model.state_dict().items())  # bit for bit
    assert all(torch.equal(value, average[key]) for key, value in ema.average.items())
    assert [p.data_ptr() for p in model.parameters()] == pointers  # in place: the optimizer's parameters


def test_applied_restores_shared_parameters():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    ema = EMA(model, 0.5, warmup=False)
    for _ in random_walk(model, 2):
        ema.update()
    live, average = copy.deepcopy(model.state_dict()), copy.deepcopy(ema.average)
    with ema.applied():
        close(model.state_dict(), average)
    close(model.state_dict(), live)
    with ema.applied():
        close(model.state_dict(), average)


def test_state_dict_round_trip():
    model, other = Net(), Net()
    ema = EMA(model, 0.6)
    for _ in random_walk(model, 4):
        ema.update()
    buffer = io.BytesIO()
    torch.save(dict(ema=ema.state_dict(), model=model.state_dict()), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    other.load_state_dict(state["model"])
    resumed = EMA(other, 0.1)
    resumed.load_state_dict(state["ema"])
    assert (resumed.steps, resumed.decay) == (4, 0.6)
    for _ in zip(random_walk(model, 3, seed=1), random_walk(other, 3, seed=1), strict=True):
        ema.update()
        resumed.update()
    assert all(torch.equal(value, ema.average[key]) for key, value in resumed.average.items())


def test_averages_do_not_share_memory_with_the_model():
    model = Net()
    ema = EMA(model)
    expected = copy.deepcopy(ema.average)
    for _ in random_walk(model, 1):
        pass
    assert all(torch.equal(value, expected[key]) for key, value in ema.average.items())
    assert not any(value.requires_grad for value in ema.average.values())


def test_a_state_of_another_model_is_refused_by_name():
    ema = EMA(Net())
    state = copy.deepcopy(ema.state_dict())
    state["average"]["extra"] = state["average"].pop("fc.weight")
    with pytest.raises(UsageError, match=r"extra, fc\.weight"):
        ema.load_state_dict(state)


def test_a_state_of_another_shape_is_refused_by_name():
    ema = EMA(Net())
    state = copy.deepcopy(ema.state_dict())
    state["average"]["fc.weight"] = torch.zeros(1)  # would broadcast
    before = copy.deepcopy(ema.average)
    with pytest.raises(UsageError, match=r"fc\.weight"):
        ema.load_state_dict(state)
    assert all(torch.equal(value, before[key]) for key, value in ema.average.items())


@pytest.mark.parametrize("decay", [1.0, -0.1, 2, math.nan])
def test_bad_decay_is_quoted(decay):
    with pytest.raises(UsageError, match=rf"decay \(={decay}\)"):
        EMA(Net(), decay)


def test_an_average_of_no_network_is_refused():
    with pytest.raises(UsageError, match=r"EMA takes a network \(torch.nn.Module\), not generator"):
        EMA(nn.Linear(2, 2).parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_averages_of_half_types_are_float32(dtype):
    model = nn.Linear(1, 1, bias=False).to(dtype)
    model.weight.data.fill_(1.0)
    ema = EMA(model, 0.999, warmup=False)
    model.weight.data.fill_(2.0)
    for _ in range(2000):
        ema.update()
    expected = 2 - 0.999**2000
    assert ema.average["weight"].item() == pytest.approx(expected, rel=1e-4)  # float32, 2000 roundings
    exact = ema.average["weight"].clone()
    for _ in range(2):  # nothing is lost on the way
        with ema.applied():
            assert model.weight.dtype is dtype
            assert model.weight.item() == exact.to(dtype).item()
        assert model.weight.item() == 2
        assert torch.equal(ema.average["weight"], exact)
    other = EMA(nn.Linear(1, 1, bias=False).to(dtype))
    other.load_state_dict(ema.state_dict())
    assert torch.equal(other.average["weight"], exact)


def test_averages_of_half_types_move_in_a_fused_step():
    model = nn.Linear(3, 2).bfloat16()
    ema = EMA(model, 0.5, warmup=False)
    fused = FusedStep(torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9), ema, clipping=1.0)
    before = model.weight.detach().float()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    fused.step()
    torch.testing.assert_close(ema.average["weight"], (before + model.weight.detach().float()) / 2)


class Extra(nn.Linear):
    def get_extra_state(self):
        return dict(seen=3)

    def set_extra_state(self, state):
        pass


def test_what_is_no_tensor_is_not_averaged():
    model = nn.Sequential(Extra(2, 2))
    ema = EMA(model, 0.5, warmup=False)
    before = model[0].weight.detach().clone()
    model[0].weight.data += 1
    ema.update()
    assert ema.average.keys() == {"0.weight", "0.bias"}
    with ema.applied():
        torch.testing.assert_close(model[0].weight.detach(), before + 0.5)


def test_complex_parameters_are_averaged():
    model = nn.Linear(2, 2, dtype=torch.complex64)
    ema = EMA(model, 0.5, warmup=False)
    before = model.weight.detach().clone()
    model.weight.data += 1j
    ema.update()
    torch.testing.assert_close(ema.average["weight"], before + 0.5j)
