"""Loss, accuracy and data of the classification task."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_runs import classification, few_digits

from normfree import UsageError
from normfree.data import Batch, DataConfig, soft_labels
from normfree.tasks import TaskConfig
from normfree.tasks.classification import Accuracy, image_statistics


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
