"""Scores of each class, and what is said of a network that says one thing."""

from collections import Counter

import numpy as np
import pytest
import torch
from sklearn import metrics as peer
from tiny_runs import classification

from normfree.data import Batch
from normfree.tasks.confusion import ClassScores, Confusion
from normfree.tasks.majority import majority_result


def batch_of(labels: torch.Tensor) -> Batch:
    return Batch(torch.zeros(len(labels), 1, 1, 1), labels, torch.arange(len(labels)))


def measured(labels: list[int], said: list[int], classes: int) -> Confusion:
    metric = Confusion(classes)
    for part in (slice(0, 3), slice(3, None)):  # in two batches
        logits = torch.nn.functional.one_hot(torch.tensor(said[part], dtype=torch.int64), classes).float()
        metric.update(logits, batch_of(torch.tensor(labels[part], dtype=torch.int64)))
    return metric


@pytest.fixture
def drawn() -> tuple[list[int], list[int], int]:
    """50 images of 7 classes, of which the last has no image."""
    labels = torch.randint(6, (50,))
    said = torch.where(torch.rand(50) < 0.5, labels, torch.randint(7, (50,)))
    return labels.tolist(), said.tolist(), 7


def test_scores_are_scikit_learns(drawn):
    labels, said, classes = drawn
    metric = measured(labels, said, classes)
    expected = peer.precision_recall_fscore_support(labels, said, labels=range(6), zero_division=0)
    found = np.array([(one.precision, one.recall, one.f1, one.images) for one in metric.per_class()[:6]]).T
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert metric.matrix().tolist() == peer.confusion_matrix(labels, said, labels=range(7)).tolist()
    assert metric.compute()["top1"] == peer.accuracy_score(labels, said)
    assert metric.compute()["balanced_accuracy"] == pytest.approx(np.mean(expected[1]), rel=1e-12)


def test_a_class_without_images_has_no_recall(drawn):
    labels, said, classes = drawn
    metric = measured(labels, said, classes)
    assert metric.without_images() == [6]
    last = metric.per_class()[6]
    assert last == ClassScores(0, 0.0 if 6 in said else None, None, None)


def test_precision_of_a_class_that_is_never_said():
    assert measured([0, 1, 1, 0], [0, 0, 0, 0], 2).per_class() == [
        ClassScores(2, 0.5, 1.0, pytest.approx(2 / 3)),
        ClassScores(2, None, 0.0, 0.0),
    ]


def test_nothing_measured():
    metric = Confusion(3)
    assert metric.compute() == dict(top1=0.0, loss=0.0, images=0, balanced_accuracy=0.0)
    assert metric.per_class() == [ClassScores(0, None, None, None)] * 3


def test_processes_together_have_the_numbers_of_one(drawn):
    labels, said, classes = drawn
    whole = measured(labels, said, classes)
    parts = [measured(labels[part], said[part], classes).parts for part in (slice(0, 20), slice(20, None))]
    joined = Confusion(classes)
    joined.join(parts)
    assert joined.per_class() == whole.per_class()
    assert joined.compute() == pytest.approx(whole.compute(), rel=1e-6)  # the loss is a sum in float32


@pytest.mark.parametrize(
    ("labels", "said", "words"),
    [
        ([0, 0, 0, 1], [0, 0, 0, 0], "all images are said to be cat, the most frequent class (75.00% of the images)"),
        ([0, 0, 0, 1], [1, 1, 1, 1], "no better than always saying cat (75.00% of the images); all .* be dog"),
        ([0, 0, 0, 1], [0, 0, 1, 1], "no better than always saying cat (75.00% of the images)"),
        ([0, 0, 1, 1], [0, 1, 1, 1], None),
        ([0, 0, 0, 0], [0, 0, 0, 0], None),  # of one class there is nothing to tell apart
    ],
)
def test_a_majority_class_result_is_called_that(labels, said, words):
    told = measured(labels, said, 2).majority(["cat", "dog"])
    if words is None:
        assert told is None
    else:
        assert told.startswith("majority-class result: ")
        for part in words.split(".*"):
            assert part.strip() in told


def test_the_most_frequent_class_is_what_accuracy_is_compared_with():
    images = Counter({0: 1, 1: 3, 2: 2})
    assert "always saying b (50.00% of the images)" in majority_result(images, "abc", 3)
    assert majority_result(images, "abc", 4) is None


@pytest.mark.parametrize(("classes", "there"), [(2, False), (5, False), (6, True)])
def test_top5_of_up_to_five_classes_says_nothing(classes, there):
    assert ("top5" in Confusion(classes).compute()) == there
    task = classification()
    task.classes = classes
    assert ("top5" in task.metrics().compute()) == there
