"""Numbers of images: standardization, loss, MAE and R2."""

import pytest
import torch
from sklearn import metrics as peer
from torch import nn

from normfree import UsageError
from normfree.data import Batch, DataConfig, Source
from normfree.data.sources import ArraySplit
from normfree.tasks import Regression, TaskConfig
from normfree.tasks.regression import RegressionErrors, in_units, resolved_units


class Numbered(ArraySplit):
    """Image i has the numbers 2 i + 100 and -i / 1000."""

    def target(self, index):
        return torch.tensor([2.0 * index + 100, -index / 1000])


def source(count: int = 16) -> Source:
    images = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
    split = Numbered(images, torch.zeros(count, dtype=torch.int64), "made")
    return Source(split, split, ["far", "near"])


def task(config=None, **data) -> Regression:
    data = DataConfig(**{"channels": 1, "resize_margin": 0, "crop": "none", "flip": False, **data})
    return Regression(source(), config or TaskConfig("regression"), data, image_size=8, test_size=8, batch_size=8)


def batch_of(targets: torch.Tensor) -> Batch:
    count = len(targets)
    return Batch(torch.zeros(count, 1, 1, 1), torch.zeros(count).long(), torch.arange(count), targets=targets)


def drawn(count: int = 30) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Answers, truths, and mean and standard deviation to standardize by."""
    mean, std = torch.tensor([1000.0, -0.5]), torch.tensor([40.0, 0.01])
    true = mean + std * torch.randn(count, 2)
    return true + std * 0.5 * torch.randn(count, 2), true, mean, std


def test_numbers_are_standardized_by_the_training_images():
    made = task()
    targets = torch.stack([source().train.target(i) for i in range(16)]).double()
    torch.testing.assert_close(made.mean.double(), targets.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(made.std.double(), targets.std(0, correction=0), rtol=1e-6, atol=0)
    assert made.notes == ["numbers to learn: far (mean 115, std 9.22), near (mean -0.0075, std 0.00461)"]
    batch = batch_of(targets.float())
    exact = (targets.float() - made.mean) / made.std
    assert made.loss(exact, batch).item() < 1e-10
    assert made.loss(exact + 2, batch).item() == pytest.approx(4, rel=1e-5)
    assert made.loss(exact.bfloat16(), batch).dtype == torch.float32
    assert made.correct(exact + torch.tensor([0.1, 0.9]), batch).item() == 8
    assert made.correct(exact[:0], batch.part(slice(0, 0))).item() == 0


def test_the_recipes_units_are_taken_where_there_are():
    config = TaskConfig("regression", target_mean=(1.0, 2.0), target_std=(3.0, 4.0))
    made = task(config)
    assert (made.mean.tolist(), made.std.tolist()) == ([1, 2], [3, 4])


@pytest.mark.parametrize("in_units", [False, True])
def test_errors_are_scikit_learns(in_units):
    said, true, mean, std = drawn()
    right, answered = true.numpy(), said.numpy()
    metric = RegressionErrors(mean, std, in_units)
    for part in (slice(0, 9), slice(9, 30)):
        metric.update(said[part] if in_units else (said[part] - mean) / std, batch_of(true[part]))
    found = metric.per_number()
    for k in range(2):
        # standardized in float32, by a mean of 25 standard deviations
        assert found[k]["mae"] == pytest.approx(peer.mean_absolute_error(right[:, k], answered[:, k]), rel=1e-5)
        assert found[k]["r2"] == pytest.approx(peer.r2_score(right[:, k], answered[:, k]), abs=1e-5)
    assert metric.compute()["r2"] == pytest.approx(peer.r2_score(right, answered), abs=1e-5)
    assert metric.compute()["images"] == 30
    parts = [RegressionErrors(mean, std, True) for _ in range(2)]
    parts[0].update(said[:4], batch_of(true[:4]))
    parts[1].update(said[4:], batch_of(true[4:]))
    joined = RegressionErrors(mean, std, True)
    joined.totals = [sum(both) for both in zip(*(part.totals for part in parts), strict=True)]
    assert joined.compute() == pytest.approx(metric.compute(), rel=1e-4)


@pytest.mark.parametrize(("error", "r2"), [(0.0, 1.0), (1.0, 0.0)])
def test_numbers_without_spread_have_scikit_learns_r2(error, r2):
    metric = RegressionErrors(torch.tensor([0.0]), torch.tensor([1.0]))
    metric.update(torch.full((4, 1), 3.0 + error), batch_of(torch.full((4, 1), 3.0)))
    assert metric.per_number() == [dict(mae=error, r2=r2)]
    assert peer.r2_score([3.0] * 4, [3.0 + error] * 4) == r2


def test_nothing_measured_is_finite():
    assert RegressionErrors(torch.zeros(1), torch.ones(1)).compute() == dict(r2=1.0, mae=0.0, loss=0.0, images=0)


def test_a_classifier_says_the_numbers_themselves():
    classifier, features = nn.Linear(5, 2).double(), torch.randn(7, 5, dtype=torch.float64)
    mean, std = torch.tensor([100.0, -3.0]), torch.tensor([20.0, 0.1])
    standardized = classifier(features)
    in_units(classifier, mean, std)
    torch.testing.assert_close(classifier(features), standardized * std + mean, rtol=1e-12, atol=1e-12)


def test_a_constant_number_is_named():
    split = source().train
    constant = Source(split, split, ["a", "b"])
    object.__setattr__(constant, "train", Same(split.images, split.labels, "made"))
    with pytest.raises(UsageError, match=r"all training images have the same b \(=7\)"):
        resolved_units(TaskConfig("regression"), constant)


class Same(ArraySplit):
    """The second number is always 7."""

    def target(self, index):
        return torch.tensor([float(index), 7.0])


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (dict(name="classification", target_mean=(1.0,), target_std=(1.0,)), r"task\.target_mean .* is for regression"),
        (dict(name="regression", target_mean=(1.0,)), "must both be set"),
        (dict(name="regression", target_mean=(1.0,), target_std=(0.0,)), r"task\.target_std \(=\[0.0\]\) must be"),
        (dict(name="regression", target_mean=(1.0, 2.0), target_std=(1.0,)), r"as many as task\.target_mean"),
        (dict(name="regression", label_smoothing=0.1), r"task\.label_smoothing .* must be 0 for regression"),
        (dict(name="regression", loss="sigmoid"), r"task\.loss .* is for classification"),
    ],
)
def test_wrong_fields_are_named(fields, named):
    with pytest.raises(UsageError, match=named):
        TaskConfig(**fields)


def test_what_does_not_go_with_numbers():
    with pytest.raises(UsageError, match=r"data\.mixup \(=0\.2\) must be 0 for regression"):
        task(mixup=0.2)
    with pytest.raises(UsageError, match=r"data\.sampler"):
        task(sampler="balanced")
    with pytest.raises(UsageError, match=r"task\.target_mean has 1 numbers; the images have 2"):
        task(TaskConfig("regression", target_mean=(1.0,), target_std=(1.0,)))
