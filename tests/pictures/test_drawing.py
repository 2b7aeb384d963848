"""Colours of classes and of depth: what a pixel's colour is, and what has none."""

import numpy as np
import pytest
import torch

from normfree.pictures.drawing import (
    BLEND,
    UNKNOWN,
    class_colors,
    depth_colors,
    draw_depth,
    draw_mask,
    draw_objects,
    rgb_picture,
)


@pytest.mark.parametrize("count", [2, 6, 21, 60])
def test_colours_of_neighbours_differ(count):
    colors = class_colors(count).astype(int)
    assert colors[0].tolist() == [0, 0, 0]
    assert np.abs(np.diff(colors, axis=0)).sum(1).min() > 60


@pytest.mark.parametrize("channels", [1, 3])
def test_classes_over_their_image(channels):
    image = torch.full((channels, 2, 3), 100, dtype=torch.uint8)
    mask = torch.tensor([[0, 1, 2], [255, 1, 0]])
    palette = np.array([[0, 0, 0], [200, 100, 50], [10, 20, 30]], np.uint8)
    drawn = np.array(draw_mask(image, mask, palette)).astype(float)
    for place in np.ndindex(2, 3):
        number = int(mask[place])
        expected = [100.0] * 3 if number == 255 else 100 + BLEND * (palette[number].astype(float) - 100)
        assert drawn[place] == pytest.approx(expected, abs=1)  # rounded down
    assert np.array_equal(np.array(rgb_picture(image)), np.full((2, 3, 3), 100))


def test_depth_on_a_scale():
    drawn = np.array(draw_depth(torch.tensor([[2.0, 4.0, 6.0], [0.0, 1.0, 9.0]]), 2.0, 6.0))
    colors = depth_colors()
    expected = [
        colors[0],
        colors[128],
        colors[255],
        [UNKNOWN] * 3,
        colors[0],
        colors[255],
    ]  # beyond the ends: the ends'
    assert np.abs(drawn.reshape(6, 3).astype(int) - np.array(expected, int)).max() <= 2  # 127.5 is rounded
    assert np.array(draw_depth(torch.full((2, 2), 3.0), 3.0, 3.0)).tolist() == [[colors[0].tolist()] * 2] * 2


def test_near_is_bright():
    brightness = depth_colors().astype(int).sum(1)
    assert brightness[0] > 2 * brightness[-1]


def test_objects_over_their_image():
    image = torch.full((3, 20, 30), 100, dtype=torch.uint8)
    masks = torch.zeros(2, 20, 30, dtype=torch.bool)
    masks[0, 5:9, 5:9] = masks[1, 7:15, 7:15] = True
    boxes = torch.tensor([[5.0, 5.0, 9.0, 9.0], [7.0, 7.0, 15.0, 15.0]])
    palette = np.array([[200, 100, 50], [10, 20, 30]], np.uint8)
    drawn = np.array(draw_objects(image, boxes, torch.tensor([0, 1]), masks, palette)).astype(int)
    assert drawn[0, 0].tolist() == [100, 100, 100]
    for corner in ((5, 5), (5, 8), (8, 8)):  # the first object's frame is on top
        assert drawn[corner].tolist() == [200, 100, 50]
    assert drawn[14, 14].tolist() == [10, 20, 30]
    assert drawn[15, 15].tolist() == [100, 100, 100]
    inside = 100 + BLEND * (np.array([10, 20, 30]) - 100)
    assert np.abs(drawn[11, 11] - inside).max() <= 1
    assert np.abs(drawn[6, 6] - (100 + BLEND * (palette[0].astype(float) - 100))).max() <= 1
    bare = np.array(draw_objects(image, boxes[:0], torch.zeros(0).long(), None, palette))
    assert np.array_equal(bare, np.full((20, 30, 3), 100))
