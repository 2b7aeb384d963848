"""Procedural scenes: seeded, exact, and what they say about themselves is so."""

import numpy as np
import pytest
import torch

from normfree import UsageError
from normfree.data.pairs import open_pairs
from normfree.data.scenes import CLASSES, SceneSplit, make_scene


def test_a_scene_is_that_of_its_seed():
    one, again = make_scene(0, 3), make_scene(0, 3)
    assert all(np.array_equal(getattr(one, name), getattr(again, name)) for name in vars(one))
    others = [make_scene(1, 3), make_scene(0, 4)]
    assert not any(np.array_equal(one.image, other.image) for other in others)


@pytest.mark.parametrize("side", [32, 96, 128])
def test_types_and_ranges(side):
    for index in range(20):
        scene = make_scene(0, index, side)
        assert scene.image.shape == (side, side, 3)
        assert (scene.image.dtype, scene.mask.dtype, scene.depth.dtype) == (np.uint8, np.uint8, np.float32)
        assert scene.mask.shape == scene.depth.shape == scene.instances.shape == (side, side)
        assert scene.mask.max() < len(CLASSES)
        assert 1.4 < scene.depth.min() < scene.depth.max() <= 9


def test_boxes_hold_exactly_what_is_seen():
    for index in range(20):
        scene = make_scene(0, index)
        assert len(scene.boxes) == len(scene.labels) == scene.instances.max()
        assert np.array_equal(scene.instances > 0, scene.mask > 0)
        for number, (box, label) in enumerate(zip(scene.boxes, scene.labels, strict=True), start=1):
            rows, columns = np.nonzero(scene.instances == number)
            assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == tuple(box)
            assert np.unique(scene.mask[rows, columns]).tolist() == [label]
            assert len(np.unique(scene.depth[rows, columns])) == 1  # shapes are flat


def test_nearer_shapes_hide_farther_ones():
    """Every shape is nearer than the room behind it would be: the floor's depth is known in closed form."""
    for index in range(20):
        scene = make_scene(0, index)
        floor = 96 * 1.5 / np.maximum(np.arange(96) + 0.5 - 0.35 * 96, 1e-3)
        behind = np.minimum(floor, 9.0)[:, None] * np.ones((1, 96))
        assert (scene.depth <= behind + 1e-3).all()


def test_every_kind_occurs():
    seen = np.unique(np.concatenate([make_scene(0, i).labels for i in range(40)]))
    assert seen.tolist() == [1, 2, 3, 4, 5]


def test_source():
    source = open_pairs("scenes:40,64", "segmentation")
    assert (len(source.train), len(source.test), source.classes) == (40, 4, list(CLASSES))
    image, mask = source.train.pair(2)
    assert image.shape == (3, 64, 64)
    assert (image.dtype, mask.dtype) == (torch.uint8, torch.int64)
    depths = open_pairs("scenes:40,64", "depth")
    again, depth = depths.train.pair(2)
    assert torch.equal(image, again)
    assert depth.dtype == torch.float32
    assert depths.classes == []
    assert torch.equal(
        SceneSplit(40, 64, 1, 0, "depth").image(2), open_pairs("scenes:40,64", "depth", 1).train.image(2)
    )


@pytest.mark.parametrize("text", ["", "0", "ten", "5,8", "5,5000", "-3", "5,96,1"])
def test_refusals(text):
    with pytest.raises(UsageError, match=r"data\.source \(='scenes:.*must be scenes:N"):
        open_pairs(f"scenes:{text}", "depth")
