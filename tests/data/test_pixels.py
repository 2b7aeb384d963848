"""Joint transforms: what is done to the image is done to its target."""

import pytest
import torch
from torch.nn import functional as F

from normfree.data.pixels import IGNORE, PixelTransform, recolored, window

PLAIN = dict(mean=(0.0,) * 3, std=(1 / 255,) * 3)  # leaves values on the 0..255 scale


def blocks(height: int = 40, width: int = 56, side: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes 1 to 6 in blocks of 8 pixels; an image whose colour says the class: 40 * class."""
    mask = torch.randint(1, 7, (-(-height // side), -(-width // side)))
    mask = mask.repeat_interleave(side, 0).repeat_interleave(side, 1)
    mask = mask[:height, :width].contiguous()
    return (mask * 40).to(torch.uint8).expand(3, -1, -1).contiguous(), mask


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", range(12))
def test_image_and_mask_move_alike(seed):
    """Away from edges, where the image is a mix, the colour still says the class; filled pixels are ignored."""
    torch.manual_seed(seed)
    transform = PixelTransform(48, 48, **PLAIN, random=True, scale=(0.5, 2.0), flip=True)
    image, mask = transform(*blocks(72, 96, 24), draw(seed))
    assert image.shape == (3, 48, 48)
    assert (mask.shape, mask.dtype) == ((48, 48), torch.int64)
    same = F.max_pool2d(mask[None].float(), 11, 1, 5) == -F.max_pool2d(-mask[None].float(), 11, 1, 5)
    inside = same[0] & (mask != IGNORE)
    filled = same[0] & (mask == IGNORE)
    assert inside.sum() > 20
    # a cubic of a flat neighbourhood, which reaches 4 pixels at scale 2, in float32
    assert (image[0][inside] - 40 * mask[inside]).abs().max() < 0.1
    assert (image[:, filled] == 0).all()  # the mean colour is 0 here


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_depth_is_divided_by_the_scale(scale):
    image, mask = blocks()
    depth = mask.float()
    depth[:, :8] = 0
    _, moved = PixelTransform(30, 30, **PLAIN, scale=(scale, scale))(image, depth, draw(0))
    assert moved.dtype == torch.float32
    assert set(moved.unique().tolist()) <= {value / scale for value in range(7)}


def test_nothing_to_do_changes_nothing():
    image, mask = blocks()
    same, target = PixelTransform(40, 56, **PLAIN)(image, mask)
    assert torch.equal(same, image.float())
    assert torch.equal(target, mask)


def test_centre_crop_and_padding():
    maps = torch.arange(20.0).view(1, 4, 5)
    assert torch.equal(window(maps, 2, 3, 0.5, 0.5, [9.0]), maps[:, 1:3, 1:4])
    padded = window(maps, 8, 3, 0.5, 0.5, [-1.0])
    assert torch.equal(padded[:, 2:6], maps[:, :, 1:4])
    assert (padded[:, [0, 1, 6, 7]] == -1).all()
    assert torch.equal(window(maps, 2, 2, 0.0, 0.9999, [0.0]), maps[:, :2, 3:])


def test_every_place_is_drawn():
    image = torch.arange(16, dtype=torch.uint8).view(1, 4, 4)
    transform = PixelTransform(3, 3, (0.0,), (1 / 255,), random=True)
    corners = {transform(image, torch.zeros(4, 4), draw(i))[0][0, 0, 0].item() for i in range(60)}
    assert {round(c) for c in corners} == {0, 1, 4, 5}


def test_short_side_first_and_whole_images():
    image, _ = blocks(40, 60)
    transform = PixelTransform(20, 24, **PLAIN, short_side=20)
    assert transform.whole(image).shape == (3, 20, 30)
    assert transform.view(image).shape == (3, 20, 24)


def test_colours():
    image = torch.rand(3, 6, 6) * 255
    seen = [recolored(image, draw(i)) for i in range(60)]
    grey = [torch.allclose(one[0], one[1], atol=1e-3) for one in seen]
    assert 0.15 < sum(grey) / 60 < 0.45  # 0.3, three standard deviations of 60 draws: 0.18
    assert all(one.min() >= 0 and one.max() <= 255 for one in seen)
    assert torch.equal(recolored(image, draw(3)), seen[3])
    one = recolored(torch.full((1, 2, 2), 100.0), draw(1))
    assert 100 - 0.1256 * 255 <= one.min() == one.max() <= 100 + 0.1256 * 255
