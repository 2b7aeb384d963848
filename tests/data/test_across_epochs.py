"""Batches that are cut from the epochs one after the other, as the released pipeline does."""

from fractions import Fraction

import pytest
import torch

from normfree.data import Loader, Mixing, Share


class Numbered:
    """Image i and label i are the number i."""

    def __init__(self, length: int):
        self.length = length

    def __len__(self):
        return self.length

    def image(self, index):
        return torch.tensor([[[index]]])

    def label(self, index):
        return index


class View:
    """Leaves images as they are."""

    def __call__(self, image, generator):
        return image.float()

    def view(self, image, generator):
        return image.float()

    def finish(self, image, generator):
        return image


def epochs(count: int, length: int = 10, size: int = 4, **options) -> list[list[list[int]]]:
    """Indices by epoch and batch."""
    loader = Loader(Numbered(length), View(), size, shuffle=True, across=True, **options)
    found = []
    for epoch in range(count):
        loader.set_epoch(epoch)
        found.append([batch.indices.tolist() for batch in loader])
        assert len(loader) == len(found[-1])
    return found


@pytest.mark.parametrize(("length", "size"), [(10, 4), (10, 3), (12, 4), (5, 5), (7, 1), (3, 8)])
def test_every_batch_is_whole_and_no_image_is_left_out(length, size):
    count = size  # after so many epochs every image has been seen equally often
    batches = [batch for epoch in epochs(count, length, size) for batch in epoch]
    assert [len(batch) for batch in batches] == [size] * length
    flat = [index for batch in batches for index in batch]
    for epoch in range(count):
        assert sorted(flat[epoch * length : (epoch + 1) * length]) == list(range(length))


def test_epochs_are_those_of_whole_epochs():
    """The order, and the seed of each image, are what a loader without it has."""
    plain = Loader(Numbered(10), View(), 10, shuffle=True)
    flat = []
    for epoch in range(2):
        plain.set_epoch(epoch)
        flat += [index for batch in plain for index in batch.indices.tolist()]
    assert [index for epoch in epochs(2) for batch in epoch for index in batch] == flat


def test_steps_of_an_epoch_are_a_fraction():
    loader = Loader(Numbered(10), View(), 4, shuffle=True, across=True)
    assert loader.steps_per_epoch == Fraction(10, 4)
    assert [len(epoch) for epoch in epochs(4)] == [3, 2, 3, 2]
    assert Loader(Numbered(10), View(), 4, shuffle=True, drop_last=True).steps_per_epoch == 2
    assert Loader(Numbered(10), View(), 4).steps_per_epoch == 3


def test_from_the_middle_of_an_epoch():
    whole = epochs(2)
    loader = Loader(Numbered(10), View(), 4, shuffle=True, across=True)
    for epoch in range(2):
        loader.set_epoch(epoch, 1)
        assert [batch.indices.tolist() for batch in loader] == whole[epoch][1:]


def test_shares_make_up_the_batches():
    parts = [epochs(3, share=Share(rank, 3)) for rank in range(3)]
    joined = [[sum(batch, []) for batch in zip(*epoch, strict=True)] for epoch in zip(*parts, strict=True)]  # noqa: RUF017
    assert joined == epochs(3)


def test_partners_of_mixing_come_from_the_same_epochs():
    loader = Loader(Numbered(10), View(), 4, shuffle=True, across=True, mixing=Mixing(0.2, 0.0))
    partners = []
    for epoch in range(4):
        loader.set_epoch(epoch)
        partners += [label for batch in loader for label in batch.partners.tolist()]
    assert [sorted(partners[i * 10 : i * 10 + 10]) for i in range(4)] == [list(range(10))] * 4
