"""Every optimizer and every kind of clipping in the trainer: going on, averages, ascent, pieces, learning rates."""

import copy
import signal

import pytest
import torch
from tiny_runs import few_digits, network, trainer

from normfree import UsageError
from normfree.data import Batch
from normfree.optim import EMA, OptimConfig
from normfree.optim.optimizers import OPTIMIZERS
from normfree.training import StopRequests, TrainStep, find_checkpoint, read_metrics
from normfree.training.checkpoints import read_tensors
from normfree.training.train_state import capture

FILES = ("weights", "ema", "momentum", "optimizer", "random")
CASES = {
    "lars": dict(name="lars", lr=1.0, options=dict(trust_coefficient=0.02)),
    "lars of weights, unclipped": dict(
        name="lars",
        lr=1.0,
        nesterov=False,
        options=dict(scaled=["weight", "classifier"]),
        clipping=None,
    ),
    "muon": dict(name="muon", lr=0.05),
    "muon, not relative": dict(name="muon", lr=0.02, options=dict(relative=False), clipping_kind="layer"),
    "rmsprop": dict(name="rmsprop", lr=0.005),
    "rmsprop without momentum": dict(name="rmsprop", lr=0.005, momentum=0.0, lr_decay=0.9, lr_decay_epochs=1.0),
    "adam": dict(name="adam", lr=0.005, options=dict(betas=[0.8, 0.9])),
    "adamw, unclipped": dict(name="adamw", lr=0.005, clipping=None),
    "lamb": dict(name="lamb", lr=0.02),
    "laprop": dict(name="laprop", lr=0.005),
    "schedulefree_sgd": dict(name="schedulefree_sgd", ema_decay=None),
    "schedulefree_adamw": dict(name="schedulefree_adamw", lr=0.005, ema_decay=None),
    "imported": dict(name="torch.optim:NAdam", lr=0.005, options=dict(betas=[0.8, 0.9])),
    "imported, counts in its groups": dict(name="timm.optim:Lamb", lr=0.005),
    "by layer": dict(clipping_kind="layer", clipping_parts={"stem": False, "classifier": True}),
    "updates": dict(name="adamw", lr=0.005, clip_on="update", clipping_parts={"classifier": 1.0}),
    "by norm": dict(clipping_kind="norm", clipping=0.5, clipping_parts={"stages.0": False}),
}
MORE = dict(sam_rho=0.05, lr_factors=dict(gain=0.5, bias=0.25))


def made(folder, case, stop=None):
    train = dict(steps=5, eval_every=1, micro_batch=5)
    return trainer(folder, train=train, optim={**MORE, **CASES[case]}, stop=stop)


def test_each_optimizer_is_tried_here():
    assert {options.get("name", "sgd") for options in CASES.values()} >= set(OPTIMIZERS)


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_goes_on_is_the_uninterrupted_one(tmp_path, case):
    whole = made(tmp_path / "whole", case)
    whole.fit()
    stop = StopRequests()
    cut = made(tmp_path / "cut", case, stop)
    cut.on_step = lambda step: setattr(stop, "received", signal.SIGTERM if step == 3 else stop.received)
    assert cut.fit().steps == 3
    again = made(tmp_path / "again", case)
    torch.manual_seed(123)
    assert again.resume(find_checkpoint(tmp_path / "cut" / "checkpoints")[0]) == []
    again.fit()
    for name in FILES:
        ours, theirs = (
            read_tensors(find_checkpoint(tmp_path / run / "checkpoints")[0], name) for run in ("again", "whole")
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items()), name
    lines = read_metrics(tmp_path / "whole")
    clipped = [line["clipped"] for line in lines if line["kind"] == "train"]
    assert all(value is None for value in clipped) if CASES[case].get("clipping", 1) is None else any(clipped)
    state = capture(whole.step, whole.state)[0]
    name = CASES[case].get("name")
    assert ("optimizer" in state) == (name not in (None, "lars", "muon"))
    assert bool(state["momentum"]) == (CASES[case].get("momentum") != 0 and name in (None, "lars", "muon", "rmsprop"))


def test_state_of_an_unknown_parameter_is_refused(tmp_path):
    run = made(tmp_path / "run", "rmsprop")
    run.fit()
    files, state = capture(run.step, run.state)
    files["optimizer"]["extra.weight/square_avg"] = torch.ones(1)
    run.run.checkpoints.save(99, files, state)
    with pytest.raises(
        UsageError, match=r"has state of the optimizer of extra.weight, which the network does not have"
    ):
        made(tmp_path / "other", "rmsprop").resume(tmp_path / "run" / "checkpoints" / "step-00000099")


class Task:
    def loss(self, output, batch):
        return torch.nn.functional.cross_entropy(output, batch.labels, label_smoothing=0.1)

    def correct(self, output, batch):
        return (output.argmax(1) == batch.labels).sum()


@pytest.mark.parametrize("case", CASES)
def test_pieces_of_a_batch_give_the_same_update(case):
    """float64: the same sums in another order."""
    model = network().double().train()
    optim, steps = OptimConfig(**CASES[case]), []
    for size in (None, 3):
        own = copy.deepcopy(model)
        steps.append(TrainStep(own, Task(), optim.build(own), ema=EMA(own, 0.9), micro_batch=size))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        images = torch.randn(10, 1, 8, 8, dtype=torch.float64, generator=generator)
        batch = Batch(images, torch.arange(10), torch.arange(10))
        whole, pieces = (step(batch, 0.01) for step in steps)
        assert whole.clipped == pieces.clipped
    for a, b, before in zip(*(step.model.parameters() for step in steps), model.parameters(), strict=True):
        assert (a - b).norm() <= 1e-11 * a.norm()
        assert not torch.equal(a, before)
    for a, b in zip(*(step.ema.average.values() for step in steps), strict=True):
        assert (a - b).norm() <= 1e-11 * a.norm()


@pytest.mark.parametrize("name", ["lars", "muon", "rmsprop"])
def test_roles_have_their_factor_of_the_learning_rate(name):
    """The first step is in proportion to the learning rate: no momentum yet."""
    changes = []
    for factors in ({}, dict(gain=0.5, bias=0.25, classifier=2.0)):
        torch.manual_seed(0)
        model = network().double().train()
        before = {key: p.detach().clone() for key, p in model.named_parameters()}
        options = dict(name=name, clipping=None, weight_decay=0.0, lr_factors=factors)
        batch = Batch(torch.ones(4, 1, 8, 8, dtype=torch.float64), torch.arange(4), torch.arange(4))
        TrainStep(model, Task(), OptimConfig(**options).build(model))(batch, 0.01)
        changes.append({key: p.detach() - before[key] for key, p in model.named_parameters()})
    ends = {"fc.weight": 2.0, "skip_gain": 1.0, "gain": 0.5, "bias": 0.25, "weight": 1.0}
    for key, change in changes[1].items():
        factor = next(value for end, value in ends.items() if key.endswith(end))
        torch.testing.assert_close(change, factor * changes[0][key], rtol=1e-9, atol=1e-15)  # float64 differences


RATES = dict(sgd=0.5, lars=1.0, muon=0.1, rmsprop=0.02, schedulefree_sgd=2.0, lamb=0.05)
RATES |= dict.fromkeys(("adam", "adamw", "laprop", "schedulefree_adamw"), 0.01)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_learns_forty_digits(name):
    """From a loss of 2.3, that of chance, in 30 steps; half of it is far from what a wrong sign or scale gives."""
    torch.manual_seed(0)
    source = few_digits()
    images = torch.stack([torch.as_tensor(source.train.image(i)).float() for i in range(40)])
    images = (images.view(40, 1, 8, 8) - images.mean()) / images.std()
    batch = Batch(images, torch.tensor([source.train.label(i) for i in range(40)]), torch.arange(40))
    factors = dict(gain=5.0, bias=5.0, skip_gain=5.0, classifier=5.0) if name == "muon" else {}
    options = dict(trust_coefficient=0.02) if name == "lars" else {}
    optim = OptimConfig(name=name, clipping=0.1, ema_decay=None, lr_factors=factors, options=options)
    model = network().train()
    step = TrainStep(model, Task(), optim.build(model))
    losses = [step(batch, RATES[name]).loss for _ in range(30)]
    assert losses[0] > 2
    assert min(losses[-3:]) < 1.2


def test_state_that_is_no_tensor_is_refused_by_name(tmp_path):
    run = made(tmp_path / "run", "lars")
    parameter = next(run.model.parameters())
    run.step.optimizer.state[parameter]["count"] = 3
    with pytest.raises(UsageError, match="LARS keeps 'count', which is not a tensor, so that no run could go on"):
        capture(run.step, run.state)
