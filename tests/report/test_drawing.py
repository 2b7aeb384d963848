"""Colours of classes and of depth: what a pixel's colour is, and what has none."""

import numpy as np
import pytest
import torch

from normfree.report.drawing import BLEND, UNKNOWN, class_colors, depth_colors, draw_depth, draw_mask, rgb_picture


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
