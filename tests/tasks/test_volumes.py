"""Volumes: made from seeds, transformed, learned with U-Nets, measured by Dice."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from normfree import UsageError
from normfree.data.pixels import IGNORE
from normfree.data.volumes import CLASSES, VolumeTransform, make_volume, volumes
from normfree.tasks.volumes import Dice, soft_dice_loss


def test_volumes_are_those_of_their_seed():
    (a, mask), (b, other) = make_volume(0, 3, 24), make_volume(0, 3, 24)
    assert np.array_equal(a, b)
    assert np.array_equal(mask, other)
    assert not np.array_equal(a, make_volume(1, 3, 24)[0])
    assert a.dtype == mask.dtype == np.uint8


def test_every_class_occurs_and_shapes_are_brighter():
    counts = np.zeros(len(CLASSES))
    for index in range(6):
        volume, mask = make_volume(0, index, 24)
        counts += np.bincount(mask.ravel(), minlength=len(CLASSES))
        assert volume[mask > 0].mean() > volume[mask == 0].mean() + 40
    share = counts / counts.sum()
    assert (share > 0.01).all()
    assert share[0] > 0.7


def test_the_source_is_described_by_numbers():
    train, test = volumes("100,16")
    assert (len(train), len(test)) == (100, 10)
    image, mask = train.pair(0)
    assert image.shape == (1, 16, 16, 16)
    assert mask.shape == (16, 16, 16)
    assert (image.dtype, mask.dtype) == (torch.uint8, torch.int64)
    for text in ("", "0", "5,8", "5,16,2", "many"):
        with pytest.raises(UsageError, match=rf"data\.source \(='volumes:{text}'\)"):
            volumes(text)


def test_transform_crops_pads_and_mirrors_both_alike():
    image = torch.randint(256, (1, 10, 6, 8), dtype=torch.uint8)
    mask = image[0].long() % 3
    view = VolumeTransform((8, 8, 8), (0.5,), (0.5,))
    x, target = view(image, mask)
    assert x.shape == (1, 8, 8, 8)
    torch.testing.assert_close(x[0, :, 1:7], (image[0, 1:9].float() / 255 - 0.5) / 0.5)
    assert torch.equal(target[:, 1:7], mask[1:9])
    assert bool((target[:, [0, 7]] == IGNORE).all())
    flipped = VolumeTransform((8, 8, 8), (0.5,), (0.5,), random=True, flip=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        x, target = flipped(image, mask, generator)
        inside = target != IGNORE
        values = (x[0][inside] * 0.5 + 0.5).mul(255).round().long() % 3
        assert torch.equal(values, target[inside])


def test_a_window_of_values_and_zscore():
    torch.manual_seed(0)
    image = (1000 * torch.randn(2, 6, 7, 8)).to(torch.int16)
    window = VolumeTransform((4, 4, 4), (0.5, 0.5), (0.25, 0.5), (-100.0, 300.0))
    expected = ((image.float() + 100) / 400).clamp(0, 1)
    whole = window.whole(image)
    torch.testing.assert_close(whole[0], (expected[0] - 0.5) / 0.25)
    torch.testing.assert_close(whole[1], (expected[1] - 0.5) / 0.5)
    own = VolumeTransform((4, 4, 4), (0.5, 0.5), (0.5, 0.5), "zscore")
    torch.testing.assert_close(own.whole(image).mean((1, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(own.whole(image).std((1, 2, 3), correction=0), torch.ones(2))
    patch, _ = own(image, image[0].long().clamp(0, 1))
    torch.testing.assert_close(patch, own.whole(image)[:, 1:5, 2:6, 2:6])  # by the whole volume, not by the patch
    assert torch.equal(own.view(image), own.whole(image)[:, 1:5, 1:5, 2:6])
    constant = own.whole(torch.full((2, 3, 3, 3), 7))
    assert bool(constant.abs().max() < 1)


def test_whole_volumes_stay_as_large_as_they_are():
    image, mask = torch.randint(256, (1, 5, 9, 6), dtype=torch.uint8), torch.randint(3, (5, 9, 6))
    whole = VolumeTransform((4, 4, 4), (0.5,), (0.5,), crop=False)
    x, target = whole(image, mask)
    assert torch.equal(target, mask)
    torch.testing.assert_close(x, (image.float() / 255 - 0.5) / 0.5)


def test_foreground_patches_hold_a_class_and_the_same_seed_gives_the_same_patch():
    mask = torch.zeros(20, 20, 20, dtype=torch.int64)
    mask[1, 2, 3], mask[18, 17, 5], mask[10:12] = 1, 2, IGNORE
    image, options = torch.zeros(1, 20, 20, 20), dict(random=True, foreground=1.0)
    view = VolumeTransform((4, 5, 6), (0.5,), (0.5,), **options)
    generator, seen = torch.Generator().manual_seed(0), []
    for _ in range(20):
        _, target = view(image, mask, generator)
        assert target.shape == (4, 5, 6)
        seen.append(sorted({*target.unique().tolist()} & {1, 2}))
    assert seen.count([1]) + seen.count([2]) == 20
    assert 4 <= seen.count([1]) <= 16
    first, second = (view(image, mask, torch.Generator().manual_seed(7))[1] for _ in range(2))
    assert torch.equal(first, second)
    never = VolumeTransform((4, 5, 6), (0.5,), (0.5,), random=True)
    found = [bool(((t := never(image, mask, generator)[1]) == 1).any() or (t == 2).any()) for _ in range(20)]
    assert sum(found) < 10


def test_dice_is_that_of_sets():
    dice, truth = Dice(3), torch.tensor([[0, 1, 1, 2, 0, 0]])
    answer = torch.tensor([[0, 1, 2, 2, 0, 1]])
    batch = type("B", (), dict(target_tensor=truth, __len__=lambda self: 1))()
    dice.update(F.one_hot(answer, 3).movedim(-1, 1).float(), batch)
    one = 2 * 1 / (2 + 2), 2 * 1 / (2 + 1)
    assert dice.dice_per_class()[1:] == pytest.approx(one)
    assert dice.compute()["dice"] == pytest.approx(sum(one) / 2)
    assert math.isnan(Dice(2).dice_per_class()[1])


def test_soft_dice_is_by_volumes_without_what_is_ignored():
    torch.manual_seed(0)
    logits, targets = torch.randn(3, 4, 2, 3, 3), torch.randint(4, (3, 2, 3, 3))
    targets[0, 0, 0] = IGNORE
    losses = soft_dice_loss(logits, targets)
    for i in range(3):
        torch.testing.assert_close(soft_dice_loss(logits[i : i + 1], targets[i : i + 1])[0], losses[i])
    changed = logits.clone()
    changed[0, :, 0, 0] += torch.randn(4, 3)
    torch.testing.assert_close(soft_dice_loss(changed, targets), losses)
    p, t = logits[1].softmax(0)[2], targets[1] == 2
    by_hand = 2 * p[t].sum() / (p.sum() + t.sum())
    each = [
        2 * logits[1].softmax(0)[c][targets[1] == c].sum() / (logits[1].softmax(0)[c].sum() + (targets[1] == c).sum())
        for c in (1, 3)
    ]
    torch.testing.assert_close(losses[1], 1 - (by_hand + sum(each)) / 3, atol=1e-3, rtol=0)
