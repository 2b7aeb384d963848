"""What is done to an image is done to its boxes and masks; batches of images with objects."""

import dataclasses

import pytest
import torch
from coco_files import coco_folder

from normfree.data import Loader, ObjectList, Objects
from normfree.data.coco import coco
from normfree.data.detection import ObjectTransform, flipped, moved
from normfree.data.loader import Batch
from normfree.data.objects import open_objects

PLAIN = dict(mean=(0.0,) * 3, std=(1 / 255,) * 3)  # leaves values on the 0..255 scale


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def example(seed: int, height=60, width=84) -> tuple[torch.Tensor, Objects]:
    """Rectangles of 12 pixels or more; each one's grey says which it is; a crowd and a sliver among them."""
    draws = draw(seed)
    image, masks, boxes = torch.zeros(3, height, width, dtype=torch.uint8), [], []
    for number in range(3):
        high, wide = torch.randint(12, 24, (2,), generator=draws).tolist()
        top = torch.randint(0, height - high, (), generator=draws).item()
        left = 28 * number + torch.randint(0, max(1, 28 - wide), (), generator=draws).item()
        mask = torch.zeros(height, width, dtype=torch.bool)
        mask[top : top + high, left : left + wide] = True
        image[:, mask] = 80 * (number + 1)
        masks.append(mask)
        boxes.append([left, top, left + wide, top + high])
    boxes = torch.tensor([*boxes, [0, 0, 30, 30], [5, 5, 5.1, 20]])
    masks = torch.stack([*masks, *torch.zeros(2, height, width, dtype=torch.bool)])
    crowd = torch.tensor([False, False, False, True, False])
    return image, Objects.of(boxes, torch.tensor([0, 1, 2, 3, 4]), (height, width), masks, crowd=crowd)


@pytest.mark.parametrize("seed", range(10))
def test_image_boxes_and_masks_move_alike(seed):
    transform = ObjectTransform(96, 96, **PLAIN, short_side=60, scale=(0.5, 1.5), flip=True, train=True)
    image, objects = transform(*example(seed), draw(seed))
    height, width = objects.size
    assert image.shape == (3, 96, 96)
    assert objects.masks.shape == (3, height, width)
    assert objects.labels.tolist() == [0, 1, 2]  # without the crowd and the sliver
    assert objects.seed == seed
    assert (image[:, height:] == 0).all()
    assert (image[:, :, width:] == 0).all()
    for number, (box, mask) in enumerate(zip(objects.boxes, objects.masks, strict=True)):
        rows, columns = torch.where(mask)
        around = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert (box - around).abs().max() <= 1  # a mask's edges are whole pixels
        inner = [int(side) for side in (box[1] + 4, box[3] - 4, box[0] + 4, box[2] - 4)]
        inside = image[0, inner[0] : inner[1], inner[2] : inner[3]]
        # a cubic of a flat neighbourhood; where two rectangles touch they do so outside of these
        assert inside.numel() == 0 or (inside.median() - 80 * (number + 1)).abs() < 1


def test_a_known_move():
    objects = Objects.of(torch.tensor([[10.0, 20, 30, 40]]), torch.tensor([1]), (50, 100))
    half = moved(objects, (25, 50))
    assert half.boxes.tolist() == [[5, 10, 15, 20]]
    assert (half.size, half.original) == ((25, 50), (50, 100))
    assert half.areas.tolist() == [100]
    assert flipped(half).boxes.tolist() == [[35, 10, 45, 20]]
    beyond = moved(dataclasses.replace(objects, boxes=torch.tensor([[-10.0, 40, 20, 60]])), (50, 100))
    assert beyond.boxes.tolist() == [[0, 40, 20, 50]]


@pytest.mark.parametrize(
    ("shape", "short_side", "factor", "expected"),
    [
        ((60, 80), None, 1.0, (60, 80)),
        ((60, 80), 30, 1.0, (30, 40)),
        ((80, 60), 30, 2.0, (80, 60)),
        ((60, 80), 90, 1.0, (75, 100)),  # the longer side would be 120
        ((300, 50), None, 1.0, (100, 17)),
        ((50, 3000), None, 1.0, (2, 100)),
        ((1, 1000), 500, 1.0, (1, 100)),
    ],
)
def test_sizes(shape, short_side, factor, expected):
    assert ObjectTransform(100, 100, **PLAIN, short_side=short_side).size_of(shape, factor) == expected


def test_evaluation_leaves_objects_in_pixels_of_the_file():
    image, objects = example(3)
    seen, same = ObjectTransform(48, 48, **PLAIN, short_side=30)(image, objects)
    assert seen.shape == (3, 48, 48)
    assert (same.size, same.original) == ((30, 42), (60, 84))
    for name in ("boxes", "labels", "crowd", "areas", "masks"):
        assert torch.equal(getattr(same, name), getattr(objects, name))
    assert torch.equal(ObjectTransform(48, 48, **PLAIN, short_side=30).view(image), seen)


def test_a_sample_depends_on_its_seed_alone():
    source = open_objects("scenes:24,48")
    transform = ObjectTransform(64, 64, **PLAIN, short_side=48, scale=(0.6, 1.2), flip=True, color=True, train=True)
    options = dict(seed=5, shuffle=True, pairs=True)
    whole = [b for b in Loader(source.train, transform, 8, **options)]
    again = [b for b in Loader(source.train, transform, 8, workers=2, **options)]
    for a, b in zip(whole, again, strict=True):
        assert torch.equal(a.images, b.images)
        for one, other in zip(a.targets, b.targets, strict=True):
            assert one.seed == other.seed
            assert torch.equal(one.boxes, other.boxes)
            assert torch.equal(one.masks, other.masks)
    assert len({one.seed for batch in whole for one in batch.targets}) == 24


def test_batches_hold_objects(tmp_path):
    source = coco(str(coco_folder(tmp_path)))
    loader = Loader(source.train, ObjectTransform(32, 48, **PLAIN, train=True), 4, shape=(3, 32, 48), pairs=True)
    batch = next(iter(loader))
    assert batch.images.shape == (4, 3, 32, 48)
    assert [len(one) for one in batch.targets] == [1, 0, 1, 1]
    assert batch.inputs == (batch.images, batch.targets)
    moved = batch.to(torch.device("cpu"))
    assert isinstance(moved.targets, ObjectList)
    assert torch.equal(moved.targets[0].boxes, batch.targets[0].boxes)
    pieces = list(batch.pieces(3))
    assert [len(piece.targets) for piece in pieces] == [3, 1]
    assert pieces[1].targets[0] is batch.targets[3]
    assert Batch(batch.images, batch.labels, batch.indices).inputs == (batch.images,)


def test_batches_of_unreadable_images(tmp_path):
    folder = coco_folder(tmp_path)
    source = coco(str(folder))
    for file in (folder / "train").iterdir():
        file.write_bytes(b"no")
    loader = Loader(source.train, ObjectTransform(32, 48, **PLAIN, train=True), 4, shape=(3, 32, 48), pairs=True)
    batch = next(iter(loader))
    assert len(batch) == 0
    assert batch.images.shape == (0, 3, 32, 48)
    assert len(batch.unreadable) == 4
    assert len(batch.inputs) == 1
