"""Orders in which all classes come equally often."""

import pytest
import torch

from normfree.data.sampling import balanced_order


def labels_of(*counts: int) -> torch.Tensor:
    """So many images of each class, mixed."""
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    return labels[torch.randperm(len(labels))]


def order(labels: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return balanced_order(labels, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("counts", [(90, 9, 1), (1, 1), (7,), (5, 0, 300), (2, 3, 5, 7, 11)])
def test_classes_come_equally_often(counts):
    labels = labels_of(*counts)
    chosen = order(labels)
    assert chosen.dtype == torch.int64
    assert len(chosen) == len(labels)
    there = [label for label, count in enumerate(counts) if count]
    drawn = labels[chosen].bincount(minlength=len(counts))
    assert drawn[there].max() - drawn[there].min() <= 1
    for label in there:  # and the images of a class
        times = chosen[labels[chosen] == label].bincount(minlength=len(labels))[labels == label]
        assert times.max() - times.min() <= 1


def test_a_frequent_class_shows_other_images_each_epoch():
    labels = labels_of(900, 10)
    seen = [set(order(labels, seed).tolist()) for seed in range(8)]
    assert all(len(one) < 500 for one in seen)
    assert len(set.union(*seen)) > 890


def test_it_depends_on_the_generator_alone():
    labels = labels_of(20, 5)
    assert torch.equal(order(labels), order(labels))
    assert not torch.equal(order(labels), order(labels, 1))


def test_the_order_is_mixed():
    labels = labels_of(500, 500)
    drawn = labels[order(labels)].float()
    assert abs(drawn[:200].mean() - 0.5) < 0.15  # four standard deviations
