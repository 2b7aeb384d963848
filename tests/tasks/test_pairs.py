"""Losses and metrics of segmentation and depth: known answers, other implementations, what is ignored."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from normfree import UsageError
from normfree.data import Batch, DataConfig
from normfree.data.pairs import open_pairs
from normfree.tasks import Depth, Segmentation, TaskConfig
from normfree.tasks.depth import DepthErrors, fraction_near, reverse_huber
from normfree.tasks.segmentation import Overlap, fraction_right, pixel_entropy


def batch(targets: torch.Tensor) -> Batch:
    n = len(targets)
    return Batch(torch.zeros(n, 3, *targets.shape[1:]), torch.zeros(n).long(), torch.arange(n), targets=targets)


def one_hot(answers: torch.Tensor, classes: int) -> torch.Tensor:
    return F.one_hot(answers, classes).permute(0, 3, 1, 2).float()


def config(**fields) -> DataConfig:
    return DataConfig(**{**dict(source="scenes:20,32", image_size=32, test_size=32, crop="none"), **fields})


def test_overlap_by_hand():
    truth = torch.tensor([[[0, 0, 1, 1], [2, 2, 255, 255]]])
    said = torch.tensor([[[0, 1, 1, 1], [2, 0, 0, 1]]])
    metric = Overlap(4)
    metric.update(one_hot(said, 4), batch(truth))
    # class 0: 1 of {2 true, 2 said}, so 1/3; class 1: 2 of 3; class 2: 1 of 2; class 3 does not occur
    assert metric.per_class()[:3] == pytest.approx([1 / 3, 2 / 3, 1 / 2])
    assert math.isnan(metric.per_class()[3])
    measured = metric.compute()
    assert measured["miou"] == pytest.approx(0.5)
    assert measured["pixel_accuracy"] == pytest.approx(4 / 6)
    assert measured["images"] == 1


@pytest.mark.parametrize("sizes", [[6], [4, 2], [1] * 6])
def test_overlap_is_torchmetrics(sizes):
    torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
    truth, said = torch.randint(0, 5, (6, 9, 7)), torch.randint(0, 5, (6, 9, 7))
    truth[torch.rand(truth.shape) < 0.2] = 255
    metric, start = Overlap(5), 0
    for size in sizes:
        metric.update(one_hot(said[start : start + size], 5), batch(truth[start : start + size]))
        start += size
    options = dict(num_classes=5, ignore_index=255)
    each = torchmetrics.multiclass_jaccard_index(said, truth, average="none", **options)
    assert metric.per_class() == pytest.approx(each.tolist(), rel=1e-6)  # theirs is float32
    assert metric.compute()["miou"] == pytest.approx(each.mean().item(), rel=1e-6)
    again = Overlap(5)
    again.totals = metric.totals
    assert again.compute() == metric.compute()


def test_entropy_leaves_ignored_pixels_out():
    logits, truth = torch.randn(3, 4, 5, 5), torch.randint(0, 4, (3, 5, 5))
    truth[0, 2:] = 255
    truth[2] = 255
    expected = [F.cross_entropy(logits[:1, :, :2], truth[:1, :2]), F.cross_entropy(logits[1:2], truth[1:2]), 0.0]
    assert pixel_entropy(logits, truth).tolist() == pytest.approx([float(e) for e in expected], rel=1e-6)
    assert pixel_entropy(logits.bfloat16(), truth).dtype == torch.float32


def test_the_loss_of_a_batch_is_the_mean_of_its_parts():
    source = open_pairs("scenes:20,32", "segmentation")
    task = Segmentation(source, TaskConfig(name="segmentation"), config(), batch_size=4)
    logits, truth = torch.randn(4, 6, 8, 8), torch.randint(0, 6, (4, 8, 8))
    truth[0, 1:] = 255
    whole = batch(truth)
    parts = [task.loss(logits[i : i + 1], whole.part(slice(i, i + 1))) for i in range(4)]
    torch.testing.assert_close(task.loss(logits, whole), torch.stack(parts).mean())
    right = task.correct(one_hot(truth.clamp(max=5), 6), whole)
    assert right.item() == pytest.approx(4)


def test_depth_errors_by_hand():
    truth = torch.tensor([[[1.0, 2.0, 4.0, 0.0]]])
    said = torch.tensor([[[[1.2, 3.0, 8.0, 99.0]]]])  # ratios 1.2, 1.5, 2; the last is not measured
    metric = DepthErrors()
    metric.update(said, batch(truth))
    measured = metric.compute()
    assert [measured[name] for name in ("delta1", "delta2", "delta3")] == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert measured["rms"] == pytest.approx(math.sqrt((0.04 + 1 + 16) / 3), rel=1e-6)
    assert measured["rel"] == pytest.approx((0.2 + 0.5 + 1) / 3, rel=1e-6)


def test_the_score_of_each_image():
    said = torch.tensor([[[[1.2, 3.0, 8.0, 99.0]]], [[[2.0, 2.0, 2.0, 2.0]]], [[[1.0, 1.0, 1.0, 1.0]]]])
    truth = torch.tensor([[[1.0, 2.0, 4.0, 0.0]], [[2.0, 2.4, 1.7, 2.6]], [[0.0, 0.0, 0.0, 0.0]]])
    assert fraction_near(said, truth).tolist() == pytest.approx([1 / 3, 3 / 4, 0])
    truth = torch.tensor([[[0, 1, 2, 255]], [[2, 2, 2, 2]], [[255, 255, 255, 255]]])
    answers = torch.tensor([[[0, 1, 1, 1]], [[2, 2, 0, 2]], [[0, 0, 0, 0]]])
    assert fraction_right(one_hot(answers, 3), truth).tolist() == pytest.approx([2 / 3, 3 / 4, 0])


def test_depth_errors_against_numpy():
    rng = np.random.default_rng(0)
    truth, said = rng.uniform(0.5, 9, (5, 6, 7)), rng.uniform(-1, 9, (5, 6, 7))
    truth[rng.random(truth.shape) < 0.3] = 0
    metric = DepthErrors()
    for part in (slice(0, 2), slice(2, 5)):
        metric.update(torch.from_numpy(said[part]).float()[:, None], batch(torch.from_numpy(truth[part]).float()))
    t, s = truth[truth > 0], np.maximum(said[truth > 0], 1e-3)
    ratio = np.maximum(t / s, s / t)
    measured = metric.compute()
    for power, name in enumerate(("delta1", "delta2", "delta3"), start=1):
        assert measured[name] == pytest.approx(np.mean(ratio < 1.25**power))
    assert measured["rms"] == pytest.approx(np.sqrt(np.mean((t - s) ** 2)), rel=1e-6)
    assert measured["rel"] == pytest.approx(np.mean(np.abs(t - s) / t), rel=1e-5)  # float32 quotients by 1e-3 at most
    again = DepthErrors()
    again.totals = metric.totals
    assert again.compute() == measured


def test_reverse_huber_by_hand():
    """The largest error is 5, c is 1: |e| below, (e**2 + 1) / 2 above."""
    truth = torch.tensor([[[2.0, 2.0]], [[2.0, 0.0]]])
    said = torch.tensor([[[2.5, 7.0]], [[5.0, 99.0]]])
    assert reverse_huber(said, truth).tolist() == pytest.approx([(0.5 + 13) / 2, 5.0])
    assert reverse_huber(truth, truth).tolist() == [0.0, 0.0]
    nothing = reverse_huber(said, torch.zeros(2, 1, 2))
    assert nothing.tolist() == [0.0, 0.0]


def test_reverse_huber_is_smooth_at_c():
    truth = torch.full((1, 1, 3), 2.0)
    said = torch.tensor([[[2 + 0.999, 2 + 1.001, 7.0]]], requires_grad=True)
    reverse_huber(said, truth).sum().backward()
    assert said.grad[0, 0].tolist() == pytest.approx([1 / 3, 1.001 / 3, 5 / 3])


def test_batches_hold_targets():
    for name, kind in (("segmentation", torch.int64), ("depth", torch.float32)):
        make = dict(segmentation=Segmentation, depth=Depth)[name]
        task = make(open_pairs("scenes:20,32", name), TaskConfig(name=name), config(flip=True), batch_size=6, seed=3)
        first = next(iter(task.train))
        assert first.images.shape == (6, 3, 32, 32)
        assert (first.targets.shape, first.targets.dtype) == ((6, 32, 32), kind)
        assert torch.equal(next(iter(task.train)).targets, first.targets)
        assert torch.equal(first.part(slice(2, 4)).targets, first.targets[2:4])
        assert torch.equal(first.to(torch.device("cpu")).targets, first.targets)
        assert len(list(first.pieces(4))[1].targets) == 2
        assert sum(len(b.targets) for b in task.test) == 2


def test_refusals():
    source = open_pairs("scenes:20,32", "depth")
    for fields, match in (
        (dict(crop="distorted"), r"data\.crop \(='distorted'\) must be 'random' or 'none'"),
        (dict(mixup=0.2), r"data\.mixup \(=0\.2\) must be 0"),
    ):
        with pytest.raises(UsageError, match=match):
            Depth(source, TaskConfig(name="depth"), config(**fields), batch_size=2)
    with pytest.raises(UsageError, match="must be 0 for depth"):
        TaskConfig(name="depth", label_smoothing=0.1)
    with pytest.raises(UsageError, match="is for classification"):
        TaskConfig(name="segmentation", loss="sigmoid")
