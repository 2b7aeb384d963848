"""Images with several classes: loss, mixing and average precision."""

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score

from normfree import UsageError
from normfree.data import Batch, DataConfig, Mixing, Source
from normfree.data.sources import ArraySplit
from normfree.tasks import MultiLabel, TaskConfig
from normfree.tasks.multilabel import LabelPrecision


class Labelled(ArraySplit):
    """Noise with targets of four classes."""

    def target(self, index):
        return torch.tensor([float(index >> k & 1) for k in range(4)])


def source(count: int = 24) -> Source:
    images = torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8)
    split = Labelled(images, torch.zeros(count, dtype=torch.int64), "made")
    return Source(split, split, list("abcd"))


def task(config=None, **data) -> MultiLabel:
    data = DataConfig(**{"channels": 1, "resize_margin": 0, "crop": "none", "flip": False, **data})
    options = dict(image_size=8, test_size=8, batch_size=8)
    return MultiLabel(source(), config or TaskConfig(labels="multi"), data, **options)


def batch_of(targets: torch.Tensor) -> Batch:
    count = len(targets)
    return Batch(torch.zeros(count, 1, 1, 1), torch.zeros(count).long(), torch.arange(count), targets=targets)


def test_batches_have_targets():
    made = task()
    for loader in (made.train, made.test):
        for batch in loader:
            assert batch.targets.tolist() == [[float(i >> k & 1) for k in range(4)] for i in batch.indices.tolist()]
            assert batch.part(slice(2, 5)).targets.shape == (3, 4)


def test_loss_is_the_sum_of_binary_cross_entropies():
    logits, targets = torch.randn(6, 4, dtype=torch.float64), torch.randint(2, (6, 4)).float()
    p = logits.sigmoid()
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).sum(1).mean()
    assert task().loss(logits, batch_of(targets)).item() == pytest.approx(expected.item(), rel=1e-12)
    smooth = task(TaskConfig(labels="multi", label_smoothing=0.2))
    expected = F.binary_cross_entropy_with_logits(logits, (0.8 * targets + 0.05).double(), reduction="none")
    assert smooth.loss(logits, batch_of(targets)).item() == pytest.approx(expected.sum(1).mean().item(), rel=1e-6)
    assert task().loss(logits.bfloat16(), batch_of(targets)).dtype == torch.float32


def test_mixed_images_have_mixed_targets():
    made = task(mixup=0.5)
    (first, *_) = made.train
    keys = next(iter(made.train.batches))
    assert isinstance(made.train.loader.dataset.mixing, Mixing)
    whole = {key.index: key.partner for key in keys}
    for row, index in zip(first.targets, first.indices.tolist(), strict=True):
        both = [torch.tensor([float(i >> k & 1) for k in range(4)]) for i in (index, whole[index])]
        assert ((row >= torch.minimum(*both)) & (row <= torch.maximum(*both))).all()
    assert ((first.targets > 0) & (first.targets < 1)).any()


def test_average_precision_is_scikit_learns():
    logits, targets = torch.randn(40, 5), (torch.rand(40, 5) < 0.3).float()
    targets[:, 4] = 0  # a class that no image has
    metric = LabelPrecision(5)
    for part in (slice(0, 7), slice(7, 40)):
        metric.update(logits[part], batch_of(targets[part]))
    expected = [average_precision_score(targets[:, k], logits[:, k]) for k in range(4)]
    assert metric.per_class()[:4] == pytest.approx(expected, rel=1e-12)
    assert math.isnan(metric.per_class()[4])
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum").item() / 40
    assert metric.compute() == pytest.approx(dict(map=sum(expected) / 4, loss=loss, images=40), rel=1e-6)
    assert metric.images() == targets.sum(0).int().tolist()
    halves = [LabelPrecision(5), LabelPrecision(5), LabelPrecision(5)]
    halves[0].update(logits[:11], batch_of(targets[:11]))
    halves[1].update(logits[11:], batch_of(targets[11:]))
    halves[2].join([half.parts for half in halves[:2]])
    assert halves[2].compute() == pytest.approx(metric.compute(), rel=1e-6)
    assert LabelPrecision(5).compute() == dict(map=0.0, loss=0.0, images=0)


def test_correct_counts_fractions():
    logits, targets = torch.tensor([[1.0, -1, 1, -1], [1, 1, 1, 1]]), torch.tensor([[1.0, 0, 1, 1], [1, 1, 1, 1]])
    assert task().correct(logits, batch_of(targets)).item() == 1.75
    assert task().correct(logits[:0], batch_of(targets[:0])).item() == 0


def test_what_does_not_go_with_several_classes():
    with pytest.raises(UsageError, match=r"task\.class_weights .* is for one class per image; task\.labels is multi"):
        TaskConfig(labels="multi", class_weights="auto")
    with pytest.raises(UsageError, match=r"task\.labels \(='multi'\) is for classification; task.name is depth"):
        TaskConfig("depth", labels="multi")
    with pytest.raises(
        UsageError, match=r"data\.sampler \(='balanced'\) is for classification with one class per image"
    ):
        task(sampler="balanced")
