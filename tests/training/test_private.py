"""Differentially private steps: what one image can do, the noise, empty batches, views, a budget that is kept."""

import dataclasses
import math

import pytest
import torch
from tiny_runs import classification, few_digits, network, trainer

from normfree import RunFailed, UsageError
from normfree.data import Batch, Loader, Poisson
from normfree.data.poisson import seed_of
from normfree.optim import OptimConfig
from normfree.private import Ledger, PrivateConfig, add_noise_, epsilon_of
from normfree.training import find_checkpoint
from normfree.training.checkpoints import read_state
from normfree.training.private_step import PrivateStep

BATCH, NORM, LR = 8, 0.5, 2.0
PLAIN = dict(lr=LR, momentum=0.0, nesterov=False, weight_decay=0.0, clipping=None)


class Enlarged:
    """A task in which the loss of one image is a million times as large."""

    def __init__(self, index: int, by: float = 1e6):
        self.task, self.index, self.by = classification(label_smoothing=0.0), index, by

    def __getattr__(self, name):
        return getattr(self.task, name)

    def loss(self, output, batch):
        each = torch.stack([self.task.loss(output[n : n + 1], batch.part(slice(n, n + 1))) for n in range(len(batch))])
        return (each * torch.where(batch.indices == self.index, self.by, 1.0)).mean()


def images(*indices: int, views: int = 1) -> Batch:
    """Digits, in float64."""
    split = few_digits().train
    rows = [index for index in indices for _ in range(views)]
    pixels = [split.image(index).double()[None] / 255 for index in rows]
    stacked = torch.cat(pixels) if pixels else torch.empty(0, 1, 8, 8, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    stacked = stacked + 0.1 * torch.randn(stacked.shape, generator=generator, dtype=torch.float64) * (views > 1)
    return Batch(stacked, torch.tensor([split.label(i) for i in rows]).long(), torch.tensor(rows).long())


def stepped(batch: Batch, task=None, *, noise: float = 1e-9, optim=PLAIN, micro_batch=None, **config):
    """The parameters before a step and after it."""
    torch.manual_seed(0)
    model = network(drop_rate=0.0, stochdepth_rate=0.0).double().train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    private = PrivateConfig(epsilon=1e6, max_norm=NORM, noise_multiplier=noise, accountant="rdp", **config)
    optimizer = OptimConfig(**optim).build(model)
    step = PrivateStep(
        model, task or classification(), optimizer, ledger=Ledger(private, 0.1), batch_size=BATCH, seed=3,
        micro_batch=micro_batch,
    )  # fmt: skip
    result = step(batch, LR)
    after = {name: p.detach().clone() for name, p in model.named_parameters()}
    return before, after, result


def distance(one, other) -> float:
    return math.sqrt(sum((one[name] - other[name]).square().sum().item() for name in one))


@pytest.mark.parametrize("by", [1.0, 1e6])
def test_an_image_moves_the_parameters_by_no_more_than_the_bound(by):
    """The canary: with it and without it, under the same noise."""
    task = Enlarged(0, by)
    before, without, _ = stepped(images(1, 2, 3), task, noise=1.0)
    _, with_it, _ = stepped(images(0, 1, 2, 3), task, noise=1.0)
    bound = LR * NORM / BATCH
    moved = distance(with_it, without)
    assert moved <= bound * (1 + 1e-9)
    if by > 1:
        assert moved >= bound * (1 - 1e-9)  # the bound is reached
    assert distance(before, without) > bound  # by the noise


def test_the_canary_kills_an_ordinary_step():
    torch.manual_seed(0)
    model = network(drop_rate=0.0, stochdepth_rate=0.0).double().train()
    task, batch = Enlarged(0), images(0, 1, 2, 3)
    task.loss(model(batch.images), batch).backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert norm > 1e4 * NORM


def test_without_noise_it_is_the_sum_of_clipped_gradients():
    batch = images(0, 1, 2)
    before, after, result = stepped(batch)
    torch.manual_seed(0)
    model, task = network(drop_rate=0.0, stochdepth_rate=0.0).double().train(), classification()
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for n in range(3):
        model.zero_grad()
        one = batch.part(slice(n, n + 1))
        task.loss(model(one.images), one).backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
        assert norm > NORM
        for name, p in model.named_parameters():
            expected[name] += p.grad * NORM / norm
    expected = {name: before[name] - LR * total / BATCH for name, total in expected.items()}  # not over the 3 drawn
    assert distance(after, expected) < 1e-6 * distance(before, expected)  # noise of 1e-9
    with torch.no_grad():
        assert result.loss == pytest.approx(task.loss(model(batch.images), batch).item())


def test_an_empty_batch_is_a_step_of_noise():
    before, after, result = stepped(images(), noise=2.0)
    assert (result.images, result.loss) == (0, 0.0)
    moved = torch.cat([(after[name] - before[name]).flatten() for name in after])
    std = LR * 2.0 * NORM / BATCH
    assert abs(moved.std().item() / std - 1) < 5 / math.sqrt(2 * len(moved))
    assert abs(moved.mean().item()) < 5 * std / math.sqrt(len(moved))
    noise = [torch.zeros_like(p) for p in before.values()]
    add_noise_(noise, 2.0 * NORM, seed_of("noise", 3, 0))
    for (name, p), drawn in zip(before.items(), noise, strict=True):
        assert torch.allclose(after[name], p - LR * drawn / BATCH, rtol=0, atol=1e-12)


def test_the_noise_is_added_once_whatever_the_micro_batches():
    whole = stepped(images(*range(6)), noise=1.0)[1]
    for size in (1, 4):
        assert distance(stepped(images(*range(6)), noise=1.0, micro_batch=size)[1], whole) < 1e-12


def test_secure_noise_is_another_one_each_time():
    one, other = (stepped(images(), noise=1.0, secure=True) for _ in range(2))
    moved = torch.cat([(one[1][name] - one[0][name]).flatten() for name in one[0]])
    assert abs(moved.std().item() / (LR * NORM / BATCH) - 1) < 5 / math.sqrt(2 * len(moved))
    assert distance(one[1], other[1]) > 0.5 * distance(one[0], one[1])


@pytest.mark.parametrize("micro_batch", [None, 4, 1])
def test_the_gradient_of_an_image_is_the_mean_over_its_views(micro_batch):
    """Clipped behind the mean: an image whose views are all the same counts once."""
    same = images(0, 0, 0, 1, 1, 1)
    alone = stepped(images(0, 1))[1]
    before, after, _ = stepped(same, augmentations=3, micro_batch=micro_batch)
    assert distance(after, alone) < 1e-6 * distance(before, after)
    views = images(0, 1, views=3)
    task = Enlarged(0)
    before, with_it, _ = stepped(views, task, augmentations=3, micro_batch=micro_batch)
    without = stepped(views.part(slice(3, 6)), task, augmentations=3)[1]
    assert distance(with_it, without) == pytest.approx(LR * NORM / BATCH, rel=1e-9)


def test_an_image_that_lost_a_view_is_left_out():
    views = images(0, 1, 2, views=2)
    kept = stepped(views.chosen(torch.tensor([0, 1, 4, 5])), augmentations=2)[1]
    assert distance(stepped(views.chosen(torch.tensor([0, 1, 2, 4, 5])), augmentations=2)[1], kept) < 1e-12


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_update():
    batch = images(0, 1, 2)
    batch.images[1] = math.inf
    with pytest.raises(RunFailed, match="the loss is nan; the first output that is not finite is that of the images"):
        stepped(batch)


def test_agc_and_momentum_come_behind_the_noise():
    optim = dict(PLAIN, clipping=0.02)
    before, after, result = stepped(images(0, 1), noise=1.0, optim=optim)
    assert result.clipped > 0.5
    for name, p in before.items():
        if p.ndim == 4:
            moved = (after[name] - p).flatten(1).norm(dim=1)
            assert (moved <= LR * 0.02 * p.flatten(1).norm(dim=1).clamp(min=1e-3) * (1 + 1e-9)).all()


PRIVATE = PrivateConfig(epsilon=50.0, noise_multiplier=0.8, accountant="rdp", max_norm=0.5)


def run_of(folder, private=PRIVATE, views=1, **options):
    task = classification(batch_size=options.get("train", {}).get("batch_size", 16), poisson=Poisson(views))
    return trainer(folder, task=task, private=private, **options)


def test_a_run_counts_its_steps_and_says_what_is_spent(tmp_path):
    run = run_of(tmp_path / "run")
    summary = run.fit()
    assert summary.steps == 6
    assert run.state.spent == [[0.8, 16 / 40, 6]]
    state = read_state(find_checkpoint(tmp_path / "run" / "checkpoints")[0])
    assert state["spent"] == [[0.8, 0.4, 6]]
    assert summary.last["epsilon"] == epsilon_of([[0.8, 0.4, 6]], 1e-5, "rdp")
    assert summary.last["delta"] == 1e-5


def test_steps_without_images_are_steps(tmp_path):
    run = run_of(tmp_path / "run", train=dict(batch_size=1, steps=40, log_every=40))
    summary = run.fit()
    assert summary.steps == 40
    assert any(count == 0 for _, _, count, _ in run.state.recent)


def test_a_run_that_would_exceed_its_budget_does_not_begin(tmp_path):
    tight = dataclasses.replace(PRIVATE, epsilon=5.0)
    with pytest.raises(UsageError, match=r"^6 steps would spend epsilon .* more than private.epsilon \(=5.0\) allows"):
        run_of(tmp_path / "run", tight).fit()


@pytest.mark.parametrize("views", [1, 2])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, views):
    private = dataclasses.replace(PRIVATE, augmentations=views)
    whole = run_of(tmp_path / "whole", private, views)
    whole.fit()
    run_of(tmp_path / "part", private, views).fit()
    again = run_of(tmp_path / "again", private, views)
    torch.manual_seed(99)
    again.resume(tmp_path / "part" / "checkpoints" / "step-00000004")
    assert again.state.spent == [[0.8, 0.4, 4]]
    again.fit()
    for (name, p), q in zip(whole.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert all(torch.equal(a, again.ema.average[name]) for name, a in whole.ema.average.items())
    assert again.state.spent == whole.state.spent


def test_a_resumed_run_keeps_the_budget_of_the_whole(tmp_path):
    run_of(tmp_path / "run", train=dict(steps=6, eval_every=100)).fit()
    checkpoint = find_checkpoint(tmp_path / "run" / "checkpoints")[0]
    six, nine = (epsilon_of([[0.8, 0.4, steps]], 1e-5, "rdp") for steps in (6, 9))
    enough = dataclasses.replace(PRIVATE, epsilon=(six + nine) / 2)
    longer = run_of(tmp_path / "longer", enough, train=dict(steps=9))
    with pytest.raises(UsageError, match=r"^9 steps would spend .* [678] steps would not"):
        longer.resume(checkpoint)
    other = dataclasses.replace(PRIVATE, noise_multiplier=1.6)  # other noise from here on is accounted for
    run = run_of(tmp_path / "other", other, train=dict(steps=8))
    run.resume(checkpoint)
    run.fit()
    assert run.state.spent == [[0.8, 0.4, 6], [1.6, 0.4, 2]]
    assert run.state.metrics["epsilon"] == epsilon_of(run.state.spent, 1e-5, "rdp")


def test_batches_must_be_drawn_by_poisson_sampling(tmp_path):
    for task in (classification(), classification(poisson=Poisson(2))):
        with pytest.raises(UsageError, match=r"^private training needs batches by Poisson sampling"):
            trainer(tmp_path / "run", task=task, private=PRIVATE)


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [("train", "compile", True), ("train", "parallel", "fsdp"), ("train", "precision", "float16"),
     ("train", "activation_checkpointing", (0,)), ("train", "activation_checkpointing", "all"),
     ("train", "across_epochs", True), ("train", "skip_nonfinite", 2), ("optim", "sam_rho", 0.05)],
)  # fmt: skip
def test_what_contradicts_it_is_refused_by_name(tmp_path, section, name, value):
    with pytest.raises(
        UsageError, match=rf"^{section}\.{name} \(={value}\) is not for private training: ".replace("(0,)", r"\(0,\)")
    ):
        run_of(tmp_path / "run", **{section: {name: value}})


def test_secure_is_float32_alone(tmp_path):
    run_of(tmp_path / "run", train=dict(precision="bfloat16", steps=1)).fit()
    secure = dataclasses.replace(PRIVATE, secure=True)
    with pytest.raises(UsageError, match=r"^train.precision \(=bfloat16\) is not for private training: float32 alone"):
        run_of(tmp_path / "other", secure, train=dict(precision="bfloat16"))


def test_micro_batches_that_fit_are_found_with_images(tmp_path):
    run = run_of(tmp_path / "run", train=dict(micro_batch="auto", steps=3))
    run.fit()
    assert isinstance(run.step.micro_batch, int)


def test_the_gradients_of_single_images_are_checked_first(tmp_path):
    class Mixed(torch.nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    model = torch.nn.Sequential(network(), Mixed())
    with pytest.raises(UsageError, match="the network or the loss mixes examples"):
        run_of(tmp_path / "run", model=model).fit()


def test_the_loader_draws_at_the_rate():
    task = classification(poisson=Poisson())
    assert isinstance(task.train, Loader)
    assert (task.train.rate, len(task.train)) == (16 / 40, 2)
