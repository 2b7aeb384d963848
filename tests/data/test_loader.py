"""Batches: which images, in which order, the same whoever makes them, and what happens to unreadable ones."""

from dataclasses import dataclass

import image_files
import pytest
import torch

from normfree.data import (
    Batch,
    EvalTransform,
    Loader,
    Share,
    TrainTransform,
    Unreadable,
    UnreadableImage,
    digits,
    image_folder,
)

PLAIN = EvalTransform(1, 0, (0.0,), (1 / 255,))  # leaves values as they are
RANDOM = TrainTransform(9, "distorted", True, (0.5,), (0.5,), cutout=3)


@dataclass
class Numbered:
    """Image i is the number i, of label 2 i; some cannot be read."""

    length: int
    unreadable: tuple[int, ...] = ()

    def __len__(self):
        return self.length

    def image(self, index):
        if index in self.unreadable:
            raise UnreadableImage(f"image{index}.png: broken")
        return torch.tensor([[[index]]])

    def label(self, index):
        return 2 * index

    def name(self, index):
        return f"image{index}.png"


def indices(loader) -> list[int]:
    return [i for batch in loader for i in batch.indices.tolist()]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("length", "size", "batches"), [(10, 3, 4), (9, 3, 3), (2, 5, 1), (1, 1, 1)])
def test_an_epoch_has_every_image_once(length, size, batches, shuffle):
    loader = Loader(Numbered(length), PLAIN, size, shuffle=shuffle)
    got = list(loader)
    assert len(loader) == len(got) == batches
    assert all(len(batch) == size for batch in got[:-1])
    assert sorted(i for batch in got for i in batch.indices.tolist()) == list(range(length))
    for batch in got:
        assert batch.images.dtype == torch.float32
        assert batch.labels.dtype == batch.indices.dtype == torch.int64
        assert torch.equal(batch.labels, 2 * batch.indices)
        # 1/255 and back in float32
        torch.testing.assert_close(batch.images.flatten(), batch.indices.float(), rtol=1e-6, atol=0)
        assert batch.unreadable == []


def test_evaluation_keeps_the_order_of_the_files():
    loader = Loader(Numbered(10), PLAIN, 4)
    assert indices(loader) == list(range(10))
    loader.set_epoch(5)
    assert indices(loader) == list(range(10))


def test_dropping_the_last_batch_drops_other_images_each_epoch():
    loader = Loader(Numbered(10), PLAIN, 4, shuffle=True, drop_last=True)
    dropped = set()
    for epoch in range(30):
        loader.set_epoch(epoch)
        batches = list(loader)
        assert [len(batch) for batch in batches] == [4, 4]
        assert len(loader) == 2
        seen = {i for batch in batches for i in batch.indices.tolist()}
        assert len(seen) == 8
        dropped |= set(range(10)) - seen
    assert dropped == set(range(10))


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed: int, epoch: int) -> list[int]:
        loader = Loader(Numbered(50), PLAIN, 8, shuffle=True, seed=seed)
        torch.rand(seed + 1)  # other draws of the process do not matter
        loader.set_epoch(epoch)
        return indices(loader)

    orders = {(seed, epoch): order(seed, epoch) for seed in (0, 1, 2) for epoch in (0, 1, 2)}
    assert all(order(*key) == value for key, value in orders.items())
    assert len({tuple(value) for value in orders.values()}) == 9


def test_returning_to_an_epoch_repeats_it():
    loader = Loader(digits().train, RANDOM, 400, shuffle=True)
    epochs = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        epochs.append(torch.cat([batch.images for batch in loader]))
    assert torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], epochs[1])


def test_augmentation_differs_between_images_and_epochs():
    loader = Loader(digits().test, RANDOM, 360)  # in order, so image i is in place i
    first = next(iter(loader)).images
    loader.set_epoch(1)
    second = next(iter(loader)).images
    same = (first == second).flatten(1).all(1)
    assert same.float().mean() < 0.02


# Python from 3.12 on warns of every fork beside threads, which is how torch starts its workers
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_change_nothing(tmp_path):
    root = image_files.folder(tmp_path, train=6)
    image_files.break_file(root / "train" / "cat" / "3.png")
    split = image_folder(str(root), 1).train
    epochs = {}
    for workers in (0, 2):
        loader = Loader(split, RANDOM, 5, shuffle=True, seed=3, workers=workers)
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            epochs[workers, epoch] = list(loader)
    for epoch in (0, 1):
        for alone, helped in zip(epochs[0, epoch], epochs[2, epoch], strict=True):
            assert torch.equal(alone.images, helped.images)
            assert torch.equal(alone.labels, helped.labels)
            assert torch.equal(alone.indices, helped.indices)
            assert alone.unreadable == helped.unreadable
        assert sum(len(batch.unreadable) for batch in epochs[2, epoch]) == 1


def test_unreadable_images_are_reported_and_the_others_kept():
    loader = Loader(Numbered(10, unreadable=(1, 2, 8)), PLAIN, 4)
    batches = list(loader)
    assert [batch.indices.tolist() for batch in batches] == [[0, 3], [4, 5, 6, 7], [9]]
    assert [batch.unreadable for batch in batches] == [
        [Unreadable("image1.png", "broken"), Unreadable("image2.png", "broken")],
        [],
        [Unreadable("image8.png", "broken")],
    ]
    for batch in batches:
        assert len(batch) == len(batch.images) == len(batch.labels)
        assert torch.equal(batch.labels, 2 * batch.indices)


def test_an_unreadable_image_leaves_the_others_augmentation():
    views = []
    for unreadable in ((), (4,)):
        split = Numbered(10, unreadable)
        split.image = lambda i, image=split.image: image(i).expand(1, 6, 6) + torch.arange(36).view(1, 6, 6)
        loader = Loader(split, RANDOM, 10, shuffle=True)
        batch = next(iter(loader))
        views.append(dict(zip(batch.indices.tolist(), batch.images, strict=True)))
    assert all(torch.equal(view, views[0][index]) for index, view in views[1].items())
    assert views[0].keys() - views[1].keys() == {4}


def test_a_batch_may_be_empty():
    batches = list(Loader(Numbered(4, unreadable=(0, 1)), PLAIN, 2))
    assert [len(batch) for batch in batches] == [0, 2]
    assert len(batches[0].unreadable) == 2
    assert [len(piece) for piece in batches[0].pieces(2)] == [0]
    assert len(batches[0].to(torch.device("cpu"))) == 0


def batch_of(length: int, unreadable: tuple[str, ...] = ()) -> Batch:
    return Batch(torch.rand(length, 3, 4, 5), torch.arange(length), 10 + torch.arange(length), list(unreadable))


@pytest.mark.parametrize(("length", "size", "sizes"), [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (2, 9, [2]), (3, 1, [1] * 3)])
def test_pieces_cover_the_batch(length, size, sizes):
    batch = batch_of(length)
    pieces = list(batch.pieces(size))
    assert [len(piece) for piece in pieces] == sizes
    for name in ("images", "labels", "indices"):
        assert torch.equal(torch.cat([getattr(piece, name) for piece in pieces]), getattr(batch, name))


def test_to_keeps_everything_and_sets_the_layout():
    batch = batch_of(3, ("a.png: broken",))
    moved = batch.to(torch.device("cpu"), torch.channels_last)
    assert moved.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved.images, batch.images)
    assert torch.equal(moved.labels, batch.labels)
    assert torch.equal(moved.indices, batch.indices)
    assert moved.unreadable == batch.unreadable


@dataclass
class Unbalanced(Numbered):
    """One image in ten is of class 1."""

    def label(self, index):
        return int(index % 10 == 0)


def test_balanced_batches_have_all_classes_equally_often():
    loader = Loader(Unbalanced(50), PLAIN, 8, shuffle=True, balanced=True, seed=3)
    labels = torch.cat([batch.labels for batch in loader])
    assert labels.bincount().tolist() == [25, 25]
    first = indices(loader)
    loader.set_epoch(1)
    assert indices(loader) != first
    loader.set_epoch(0, 2)  # as a run goes on within an epoch
    assert indices(loader) == first[16:]
    shares = [Loader(Unbalanced(50), PLAIN, 8, shuffle=True, balanced=True, seed=3, share=Share(r, 2)) for r in (0, 1)]
    batches = zip(*shares, strict=True)
    assert [i for both in batches for batch in both for i in batch.indices.tolist()] == first


def test_an_image_that_comes_twice_is_augmented_twice():
    images = torch.randint(256, (10, 1, 9, 9), dtype=torch.uint8)
    split = Unbalanced(10)
    split.image = images.__getitem__
    loader = Loader(split, RANDOM, 10, shuffle=True, balanced=True)
    (batch,) = loader
    (rare,) = (batch.images[batch.labels == 1],)
    assert len(rare) == 5
    assert len({tuple(image.flatten().tolist()) for image in rare}) == 5


def test_without_balance_the_order_is_what_it_was():
    """Seeds of published runs give the same batches."""
    loader = Loader(Numbered(10), PLAIN, 4, shuffle=True, seed=1)
    loader.set_epoch(2)
    generator = torch.Generator().manual_seed(1_000_003 + 2)
    assert indices(loader) == torch.randperm(10, generator=generator).tolist()
