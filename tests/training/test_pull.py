"""Training with decoupled and soft weights: micro-batches, SAM, float16, faults, resumption."""

import copy
import os
import signal

import pytest
import torch
from tiny_runs import network, trainer

from normfree import UsageError
from normfree.data import Batch
from normfree.errors import NotFinite
from normfree.functional import pull_weight
from normfree.nn import DecoupledWSConv2d
from normfree.optim import EMA, SAM, OptimConfig
from normfree.runs import train
from normfree.training import TrainStep, find_checkpoint
from normfree.training.checkpoints import read_tensors

STRENGTH = 0.4
SCHEMES = {"decoupled": None, "soft": STRENGTH}


class CrossEntropy:
    def loss(self, output, batch):
        return torch.nn.functional.cross_entropy(output, batch.labels)

    def correct(self, output, batch):
        return (output.argmax(1) == batch.labels).sum()


class Overflowing(CrossEntropy):
    """A finite loss whose gradient is more than float16 holds, and in float32 not finite at all."""

    def __init__(self, size):
        self.size = size

    def loss(self, output, batch):
        return super().loss(output, batch) + (output - output.detach()).sum() * self.size


def a_batch(size=10, seed=0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 1, 8, 8, generator=rng, dtype=dtype)
    return Batch(images, torch.randint(10, (size,), generator=rng), torch.arange(size))


def build(model, scheme, losses=None, sam=False, **options):
    config = OptimConfig(clipping=0.02, weight_decay=1e-2, weight_pull=SCHEMES.get(scheme))
    optimizer = config.build(model.train())
    config.build_pull(model, optimizer)
    sam = SAM(model.parameters(), 0.05) if sam else None
    return TrainStep(model, losses or CrossEntropy(), optimizer, ema=EMA(model, 0.9), sam=sam, **options)


def weights(model):
    return {name: m.weight for name, m in model.named_modules() if isinstance(m, DecoupledWSConv2d)}


@torch.no_grad()
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("sam", [False, True])
@pytest.mark.parametrize("micro_batch", [None, 4])
def test_a_step_ends_with_one_pull_in_front_of_the_average(scheme, sam, micro_batch):
    torch.manual_seed(0)
    model = network(weight_scheme=scheme).double()
    plain = copy.deepcopy(model)
    step = build(model, scheme, sam=sam, micro_batch=micro_batch)
    config = OptimConfig(clipping=0.02, weight_decay=1e-2)
    ascent = SAM(plain.parameters(), 0.05) if sam else None
    reference = TrainStep(plain, CrossEntropy(), config.build(plain.train()), sam=ascent, micro_batch=micro_batch)
    averages = {name: weight.clone() for name, weight in weights(model).items()}
    for number in range(3):
        with torch.enable_grad():
            for one in (step, reference):
                one(a_batch(seed=number), 0.1)
        decay = min(0.9, (1 + number) / (10 + number))
        for name, weight in weights(plain).items():
            weight.copy_(pull_weight(weight, SCHEMES[scheme] or 1.0))
            # float64; the reference's step may be the fused one, whose sums have another order
            torch.testing.assert_close(weights(model)[name], weight, rtol=1e-9, atol=1e-12)
            averages[name].mul_(decay).add_((1 - decay) * weight)
            torch.testing.assert_close(step.ema.average[f"{name}.weight"], averages[name], rtol=1e-9, atol=1e-12)


def test_without_an_update_there_is_no_pull():
    for precision, losses in (("float16", Overflowing(1e30)), ("float32", Overflowing(float("inf")))):
        model = network(weight_scheme="decoupled")
        with torch.no_grad():
            for weight in weights(model).values():
                weight.mul_(1.5)  # which a pull would undo
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        step = build(model, "decoupled", losses, precision=precision)
        if precision == "float16":
            step(a_batch(dtype=torch.float32), 0.1)
            assert step.skipped == 1
        else:
            with pytest.raises(NotFinite):
                step(a_batch(dtype=torch.float32), 0.1)
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_bfloat16_trains_and_stays_standardized():
    torch.manual_seed(0)
    model = network(weight_scheme="decoupled")
    step = build(model, "decoupled", precision="bfloat16")
    losses = [step(a_batch(dtype=torch.float32), 0.05).loss for _ in range(15)]
    assert losses[-1] < 0.7 * losses[0]
    for weight in weights(model).values():
        torch.testing.assert_close(weight, pull_weight(weight), rtol=0, atol=1e-6)


def of(folder, scheme):
    torch.manual_seed(0)
    model = network(drop_rate=0.2, stochdepth_rate=0.1, weight_scheme=scheme)
    return trainer(folder, model=model, optim=dict(sam_rho=0.05, weight_pull=SCHEMES[scheme]))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, scheme):
    whole = of(tmp_path / "whole", scheme)
    whole.fit()
    cut = of(tmp_path / "cut", scheme)
    call = TrainStep.__call__

    def asked(step, *args):
        if cut.state.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return call(step, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", asked)
        assert cut.fit().steps == 3
    kept = tmp_path / "kept"
    (tmp_path / "cut").rename(kept)
    again = of(tmp_path / "cut", scheme)
    assert again.resume(find_checkpoint(kept / "checkpoints")[0]) == []
    again.fit()
    for kind in ("weights", "ema", "momentum"):
        expected = read_tensors(find_checkpoint(whole.run.checkpoints.folder)[0], kind)
        got = read_tensors(find_checkpoint(again.run.checkpoints.folder)[0], kind)
        assert got.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in got.items())


def test_a_strength_that_does_not_fit_is_refused_before_there_is_a_folder(tmp_path):
    for overrides, words in (
        ({"model.options.weight_scheme": "soft"}, r"optim\.weight_pull is not given"),
        ({"optim.weight_pull": 0.5}, r"optim\.weight_pull \(=0\.5\) is for soft weights"),
    ):
        with pytest.raises(UsageError, match=words):
            train("digits", {"train.device": "cpu", **overrides}, out=tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()
