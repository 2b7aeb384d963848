"""Poisson sampling: rates, independence, shares of processes, and any batch from its number alone."""

import itertools
import math

import pytest
import torch

from normfree.data import EvalTransform, Loader, Poisson, PoissonBatches, Share, digits
from normfree.data.poisson import seed_of


def drawn(length=200, batch_size=20, seed=0, epochs=1, share=None, views=1):
    """Indices of each batch of some epochs."""
    batches = PoissonBatches(length, batch_size, seed, share or Share(), views)
    found = []
    for epoch in range(epochs):
        batches.epoch = epoch
        found += [[key.index for key in keys] for keys in batches]
    return found


def test_each_image_is_drawn_at_the_rate_whatever_else_is_drawn():
    """Over 4,000 batches: the mean, its variance between batches, and pairs; bounds are five standard errors."""
    length, size = 50, 10
    batches = drawn(length, size, epochs=800)
    assert len(batches) == 4000
    there = torch.zeros(len(batches), length, dtype=torch.float64)
    for row, indices in enumerate(batches):
        there[row, indices] = 1
    rate, count = size / length, len(batches)
    error = math.sqrt(rate * (1 - rate) / count)
    assert ((there.mean(0) - rate).abs() < 5 * error).all()
    sizes = there.sum(1)  # binomial: images are drawn independently
    assert abs(sizes.var().item() / (length * rate * (1 - rate)) - 1) < 5 * math.sqrt(2 / count)
    pairs = (there.T @ there / count)[~torch.eye(length, dtype=torch.bool)]
    assert ((pairs - rate**2).abs() < 6 * math.sqrt(rate**2 * (1 - rate**2) / count)).all()
    following = (there[:-1] * there[1:]).mean(0)  # one batch does not know of the next
    assert ((following - rate**2).abs() < 5 * math.sqrt(rate**2 / count)).all()


def test_a_batch_depends_on_seed_epoch_and_number():
    assert drawn(seed=1) == drawn(seed=1) != drawn(seed=2)
    both = drawn(epochs=2)
    assert both[:10] != both[10:]
    late = PoissonBatches(200, 20, 0, Share(), 1)
    late.start = 7
    assert [[key.index for key in keys] for keys in late] == drawn()[7:]


def test_batches_may_be_empty():
    assert [] in drawn(length=100, batch_size=1, epochs=1)


def test_all_images_with_a_batch_of_all():
    assert drawn(length=30, batch_size=30, epochs=2) == [list(range(30))] * 2


@pytest.mark.parametrize("world", [2, 3])
def test_processes_have_the_batch_of_one(world):
    shares = [drawn(share=Share(rank, world)) for rank in range(world)]
    assert [list(itertools.chain(*parts)) for parts in zip(*shares, strict=True)] == drawn()
    assert all(max(map(len, parts)) - min(map(len, parts)) <= 1 for parts in zip(*shares, strict=True))


def test_views_come_one_after_the_other_with_other_seeds():
    batches = PoissonBatches(100, 10, 0, Share(), 3)
    for keys, indices in zip(batches, drawn(100, 10), strict=True):
        assert [key.index for key in keys] == [index for index in indices for _ in range(3)]
        assert len({key.seed for key in keys}) == len(keys)


def test_the_loader():
    view = EvalTransform(8, 0, mean=(0.5,), std=(0.5,))
    loader = Loader(digits().test, view, 40, shape=(3, 8, 8), poisson=Poisson(views=2))
    assert (len(loader), loader.steps_per_epoch, loader.rate) == (9, 9, 40 / 360)
    loader.set_epoch(3, 4)
    batches = list(loader)
    expected = drawn(360, 40, epochs=4)[-5:]
    assert [batch.indices.tolist() for batch in batches] == [[i for i in one for _ in range(2)] for one in expected]
    small = Loader(digits().test, view, 1, shape=(3, 8, 8), poisson=Poisson())
    assert min(len(batch) for batch in small) == 0


def test_seeds_for_other_purposes_have_nothing_in_common():
    seeds = {seed_of(*parts) for parts in [("a", 0, 1), ("a", 1, 0), ("b", 0, 1), ("a", 0, 11), ("a", 0, 1, 1)]}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
