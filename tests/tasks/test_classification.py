"""Loss, accuracy and data of the classification task."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from tiny_runs import classification, few_digits

from normfree import UsageError
from normfree.data import Batch, DataConfig, Source, soft_labels
from normfree.data.sources import ArraySplit
from normfree.tasks import Classification, Depth, Detection, Segmentation, TaskConfig
from normfree.tasks.classification import Accuracy, image_statistics, resolved_weights


def labelled(labels: torch.Tensor) -> Batch:
    return Batch(torch.zeros(len(labels), 1, 1, 1), labels, torch.arange(len(labels)))


def draw(count: int, classes: int) -> tuple[torch.Tensor, Batch]:
    return 3 * torch.randn(count, classes), labelled(torch.randint(classes, (count,)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_loss_is_the_smoothed_cross_entropy(smoothing, classes):
    logits, batch = draw(16, classes)
    loss = classification(label_smoothing=smoothing).loss(logits, batch)
    target = F.one_hot(batch.labels, classes).double() * (1 - smoothing) + smoothing / classes
    expected = -(target * logits.double().log_softmax(1)).sum(1).mean()
    # float32 against float64, a mean of 16 numbers of order 1 to 10
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(loss, F.cross_entropy(logits, batch.labels, label_smoothing=smoothing))


def test_loss_of_half_precision_logits_is_float32():
    logits, batch = draw(8, 10)
    task = classification()
    loss = task.loss(logits.bfloat16(), batch)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, task.loss(logits.bfloat16().float(), batch))


@pytest.mark.parametrize("classes", [1, 2, 4, 5, 6, 50])
@pytest.mark.parametrize("sizes", [[12], [5, 5, 2], [1] * 12, [11, 0, 1]])
def test_accuracy_is_a_count(classes, sizes):
    logits, batch = draw(12, classes)
    metric, start = Accuracy(), 0
    for size in sizes:
        metric.update(logits[start : start + size], labelled(batch.labels[start : start + size]))
        start += size
    values, labels = logits.double().numpy(), batch.labels.numpy()
    rank = (values > values[np.arange(12), labels][:, None]).sum(1)  # how many classes are likelier than the label
    loss = np.mean(np.log(np.exp(values).sum(1)) - values[np.arange(12), labels])
    measured = metric.compute()
    assert measured["top1"] == np.mean(rank < 1)
    assert measured["top5"] == np.mean(rank < 5)
    assert measured["loss"] == pytest.approx(loss, rel=1e-5, abs=1e-6)  # summed in float32
    assert measured["images"] == 12


def test_accuracy_of_nothing_is_zero_images():
    assert Accuracy().compute() == dict(top1=0.0, top5=0.0, loss=0.0, images=0)


def test_accuracy_does_not_smooth():
    logits, batch = draw(12, 10)
    metric = classification(label_smoothing=0.3).metrics()
    metric.update(logits, batch)
    assert metric.compute()["loss"] == pytest.approx(F.cross_entropy(logits, batch.labels).item(), rel=1e-6)


def test_correct_counts_the_likeliest():
    logits, batch = draw(100, 4)
    count = classification().correct(logits.requires_grad_(), batch)
    assert count.item() == sum(int(row.argmax()) == label for row, label in zip(logits, batch.labels, strict=True))
    assert not count.requires_grad


def test_images_reach_the_network_normalized():
    task = classification(few_digits(train=20, test=20))
    batch = next(iter(task.test))
    expected = (few_digits().test.images[:16].float() / 255 - 0.5) / 0.5
    torch.testing.assert_close(batch.images, expected, rtol=0, atol=1e-6)  # values within 1, in float32
    assert torch.equal(batch.labels, few_digits().test.labels[:16])
    assert sum(len(batch) for batch in task.test) == 20


@pytest.mark.parametrize(("images", "size", "steps"), [(40, 16, 2), (16, 16, 1), (5, 16, 1)])
def test_training_batches_are_whole_unless_there_is_only_one(images, size, steps):
    task = classification(few_digits(train=images), size)
    assert [len(batch) for batch in task.train] == [min(images, size)] * steps


def test_training_order_follows_the_seed():
    orders = [[b.indices.tolist() for b in classification(seed=seed).train] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_image_statistics():
    assert image_statistics(DataConfig()) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert image_statistics(DataConfig(channels=1)) == ((0.5,), (0.5,))
    given = DataConfig(channels=1, mean=(0.0,), std=(0.25,))
    assert image_statistics(given) == ((0.0,), (0.25,))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_smoothing_out_of_range(smoothing):
    with pytest.raises(UsageError, match=rf"task\.label_smoothing \(={smoothing}\) must be at least 0 and below 1"):
        TaskConfig(label_smoothing=smoothing)


def test_the_loss_of_a_mixed_batch_is_the_mix_of_losses():
    torch.manual_seed(0)
    logits = torch.randn(6, 10, dtype=torch.float64)
    labels, partners, ratios = torch.randint(10, (6,)), torch.randint(10, (6,)), torch.rand(6)
    mixed = Batch(torch.empty(6, 0), labels, torch.arange(6), [], partners, ratios)
    for task in (classification(label_smoothing=0.1), classification(label_smoothing=0.0)):
        targets = soft_labels(labels, partners, ratios, 10, task.label_smoothing).double()
        expected = -(targets * logits.log_softmax(1)).sum(1).mean()
        assert task.loss(logits, mixed).item() == pytest.approx(expected.item(), rel=1e-7)
        parts = [task.loss(logits, Batch(mixed.images, one, mixed.indices)) for one in (labels, partners)]
        even = Batch(mixed.images, labels, mixed.indices, [], partners, torch.full((6,), 0.25))
        assert task.loss(logits, even).item() == pytest.approx((0.25 * parts[0] + 0.75 * parts[1]).item(), rel=1e-7)


def test_sigmoid_loss():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 10, dtype=torch.float64), torch.tensor([3, 1, 4, 1])
    task = classification(label_smoothing=0.0, loss="sigmoid")
    got = task.loss(logits, Batch(torch.empty(4, 0), labels, torch.arange(4)))
    targets = torch.nn.functional.one_hot(labels, 10)
    p = logits.sigmoid()
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).sum(1).mean()
    assert got.item() == pytest.approx(expected.item(), rel=1e-9)


def unbalanced(counts: dict[int, int], classes: int = 3) -> Source:
    labels = torch.tensor([label for label, count in counts.items() for _ in range(count)])
    split = ArraySplit(torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8), labels, "made")
    return Source(split, split, [str(i) for i in range(classes)])


def test_automatic_class_weights_are_inverse_frequencies_of_mean_one():
    counts = {0: 60, 1: 30, 2: 10}
    task = classification(unbalanced(counts), class_weights="auto")
    weights = task.weights.double()
    expected = compute_class_weight("balanced", classes=np.arange(3), y=np.repeat([0, 1, 2], [60, 30, 10]))
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert sum(weights[label] * count for label, count in counts.items()) / 100 == pytest.approx(1, rel=1e-6)


def test_a_class_without_training_images_has_a_weight_too():
    assert resolved_weights("auto", unbalanced({0: 3, 1: 1}, 4)) == (pytest.approx(2 / 3), 2.0, 1.0, 1.0)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("mixed", [False, True])
def test_each_image_counts_by_its_class(loss, mixed):
    logits, batch = draw(12, 3)
    logits = logits.double()
    if mixed:
        batch = dataclasses.replace(batch, partners=torch.randint(3, (12,)), ratios=torch.rand(12))
    weights = torch.tensor([0.5, 1.0, 4.0])
    task = classification(unbalanced({0: 1, 1: 1, 2: 1}), loss=loss, class_weights=tuple(weights.tolist()))
    plain = classification(unbalanced({0: 1, 1: 1, 2: 1}), loss=loss)
    each = torch.stack([plain.loss(logits[i : i + 1], batch.part(slice(i, i + 1))) for i in range(12)])
    if not mixed:
        expected = (weights[batch.labels] * each).mean()
    elif loss == "sigmoid":
        expected = (torch.lerp(weights[batch.partners], weights[batch.labels], batch.ratios) * each).mean()
    else:
        parts = [
            weights[y] * F.cross_entropy(logits, y, reduction="none", label_smoothing=0.1)
            for y in (batch.labels, batch.partners)
        ]
        expected = torch.lerp(parts[1], parts[0], batch.ratios.double()).mean()
    torch.testing.assert_close(task.loss(logits, batch), expected.double(), rtol=1e-6, atol=0)
    halves = [task.loss(logits[part], batch.part(part)) for part in (slice(0, 4), slice(4, 12))]
    # the gradient of a batch is the mean of its parts', so micro-batches and processes change nothing
    torch.testing.assert_close(task.loss(logits, batch), (4 * halves[0] + 8 * halves[1]) / 12, rtol=1e-12, atol=0)
    ones = classification(unbalanced({0: 1, 1: 1, 2: 1}), loss=loss, class_weights=(1.0, 1.0, 1.0))
    torch.testing.assert_close(ones.loss(logits, batch), plain.loss(logits, batch), rtol=1e-12, atol=0)


@pytest.mark.parametrize("weights", [(1.0, 0.0, 1.0), (1.0, -2.0, 1.0), (1.0, float("inf"), 1.0)])
def test_class_weights_are_above_zero(weights):
    with pytest.raises(UsageError, match=r"task\.class_weights \(=\[.*\) must be numbers above 0"):
        TaskConfig(class_weights=weights)


def test_class_weights_are_one_per_class():
    with pytest.raises(UsageError, match=r"task\.class_weights .* has 2 numbers for 3 classes"):
        classification(unbalanced({0: 1, 1: 1, 2: 1}), class_weights=(1.0, 2.0))


@pytest.mark.parametrize("name", ["segmentation", "depth", "detection"])
def test_class_weights_and_balance_are_for_classification(name):
    with pytest.raises(UsageError, match=rf"task\.class_weights \(=auto\) is for classification; task.name is {name}"):
        TaskConfig(name, class_weights="auto")
    source = SimpleNamespace(train=[], test=[], classes=["a"])
    task = dict(segmentation=Segmentation, depth=Depth, detection=Detection)[name]
    with pytest.raises(UsageError, match=r"data\.sampler \(='balanced'\) is for classification"):
        task(source, TaskConfig(name), DataConfig(sampler="balanced"), batch_size=2)


def test_the_balanced_sampler_is_used():
    data = DataConfig(channels=1, resize_margin=0, crop="shift", flip=False, sampler="balanced")
    options = dict(image_size=8, test_size=8, batch_size=20)
    task = Classification(unbalanced({0: 15, 1: 4, 2: 1}), TaskConfig(), data, **options)
    (batch,) = task.train
    assert batch.labels.bincount().sort().values.tolist() == [6, 7, 7]
    (batch,) = task.test
    assert batch.labels.bincount().tolist() == [15, 4, 1]
