"""COCO's average precision: by hand, against COCO's own code, in parts; the task's loss and batches."""

import contextlib
import io
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from normfree import UsageError
from normfree.data import Batch, DataConfig, ObjectList, Objects
from normfree.data.objects import open_objects
from normfree.models import Detections
from normfree.tasks import Detection, TaskConfig
from normfree.tasks.detection import AveragePrecision, share_found

SIDE = 120
ALL = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"]


def batch(truth: list[Objects], first: int = 0) -> Batch:
    n = len(truth)
    return Batch(
        torch.zeros(n, 3, SIDE, SIDE), torch.zeros(n).long(), torch.arange(first, first + n), targets=ObjectList(truth)
    )


def truth(boxes, labels, masks=None, **more) -> Objects:
    return Objects.of(
        torch.tensor(boxes, dtype=torch.float32).view(-1, 4), torch.tensor(labels).long(), (SIDE, SIDE), masks, **more
    )


def found(boxes, scores, labels, masks=None) -> Detections:
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).view(-1, 4), torch.tensor(scores), torch.tensor(labels).long(), masks
    )


def measured(said: list[Detections], true: list[Objects], classes=3, masks=False) -> dict[str, float]:
    metric = AveragePrecision(classes, masks)
    metric.update(said, batch(true))
    return metric.compute()


BOX = [10.0, 10, 60, 60]


def test_everything_right():
    result = measured([found([BOX], [0.9], [1])], [truth([BOX], [1])])
    assert (result["ap"], result["ap50"], result["ap75"], result["ap_medium"]) == pytest.approx((1, 1, 1, 1))
    assert result["images"] == 1
    assert "ap_small" not in result  # there is none
    assert "ap_large" not in result


def test_overlaps_by_hand():
    """40 of 50 columns: an overlap of 0.8 counts at 0.5, 0.55, ..., 0.8, seven of ten."""
    result = measured([found([[10.0, 10, 50, 60]], [0.9], [1])], [truth([BOX], [1])])
    assert (result["ap50"], result["ap75"]) == pytest.approx((1, 1))
    assert result["ap"] == pytest.approx(0.7)


def test_wrong_class_missed_and_surplus():
    other = [70.0, 70, 110, 110]
    assert measured([found([BOX], [0.9], [0])], [truth([BOX], [1])])["ap"] == 0
    half = measured([found([BOX], [0.9], [1])], [truth([BOX, other], [1, 1])])
    assert half["ap50"] == pytest.approx(51 / 101)  # recalls 0, 0.01, ..., 0.5 of 101
    surer = measured([found([other, BOX], [0.95, 0.9], [1, 1])], [truth([BOX], [1])])
    assert surer["ap50"] == pytest.approx(0.5)  # precision 1 of 2 wherever it is found
    surplus = measured([found([BOX, other], [0.95, 0.9], [1, 1])], [truth([BOX], [1])])
    assert surplus["ap50"] == pytest.approx(1.0)


def test_a_crowd_is_neither_missed_nor_found():
    crowd = torch.tensor([False, True])
    true = truth([BOX, [60.0, 60, 110, 110]], [1, 1], crowd=crowd)
    said = found([BOX, [62.0, 62, 80, 80], [70.0, 70, 100, 100]], [0.5, 0.9, 0.8], [1, 1, 1])
    assert measured([said], [true])["ap"] == pytest.approx(1.0)
    missed = measured([found([BOX], [0.5], [1])], [true])
    assert missed["ap"] == pytest.approx(1.0)


def test_images_without_objects_or_detections():
    nothing = found(np.zeros((0, 4)), torch.zeros(0).tolist(), [])
    assert measured([nothing], [truth([], [])])["ap"] == 0.0
    both = measured([nothing, found([BOX], [0.9], [1])], [truth([], []), truth([BOX], [1])])
    assert both["ap"] == pytest.approx(1.0)
    assert both["images"] == 2
    assert AveragePrecision(3, False).compute() == dict(ap=0.0, ap50=0.0, ap75=0.0, images=0)


def test_boxes_come_back_in_pixels_of_the_file():
    """The network saw the image at half of its size."""
    import dataclasses

    true = dataclasses.replace(truth([BOX], [1]), size=(SIDE // 2, SIDE // 2))
    said = found([[side / 2 for side in BOX]], [0.9], [1])
    assert measured([said], [true])["ap"] == pytest.approx(1.0)


def random_scene(rng: np.random.Generator, images=12, classes=3) -> tuple[list[Detections], list[Objects]]:
    """Objects of all sizes, some crowds; detections near them, of chance classes, and some of nothing."""
    said, true = [], []
    for _ in range(images):
        count = int(rng.integers(0, 5))
        corner, side = rng.uniform(0, 60, (count, 2)), rng.uniform(4, 58, (count, 2))
        boxes = np.concatenate([corner, corner + side], 1).astype(np.float32)
        labels = rng.integers(0, classes, count)
        crowd = torch.from_numpy(rng.random(count) < 0.15)
        true.append(truth(boxes, labels, masks_of(torch.from_numpy(boxes)), crowd=crowd))
        near = boxes + rng.normal(0, 2, boxes.shape) * rng.random((count, 1))
        far = rng.uniform(0, 60, (2, 2))
        every = np.concatenate([near, np.concatenate([far, far + rng.uniform(4, 50, (2, 2))], 1)])
        every = np.clip(every, 0, SIDE)
        guesses = np.concatenate([np.where(rng.random(count) < 0.8, labels, 0), rng.integers(0, classes, 2)])
        scores = torch.from_numpy(rng.random(count + 2).astype(np.float32))
        said.append(found(every, scores.tolist(), guesses, torch.full((count + 2, 28, 28), 0.9)))
    return said, true


def masks_of(boxes: Tensor) -> Tensor:
    masks = torch.zeros(len(boxes), SIDE, SIDE, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.round().long().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    return masks


def coco_says(said: list[Detections], true: list[Objects], kind: str) -> list[float]:
    """The first six numbers of COCO's own evaluation."""
    coco, evaluation = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    mask = pytest.importorskip("pycocotools.mask")
    runs = lambda masks, i: mask.encode(np.asfortranarray(masks[i].numpy().astype(np.uint8)))  # noqa: E731
    numbers, annotations, results = itertools.count(1), [], []
    for image, (one, objects) in enumerate(zip(said, true, strict=True)):
        placed = one.placed((SIDE, SIDE), (SIDE, SIDE))
        for i, (left, top, right, bottom) in enumerate(objects.boxes.tolist()):
            told = dict(id=next(numbers), image_id=image, category_id=int(objects.labels[i]))
            told |= dict(bbox=[left, top, right - left, bottom - top], area=float(objects.areas[i]))
            annotations.append(told | dict(iscrowd=int(objects.crowd[i]), segmentation=runs(objects.masks, i)))
        for i, (left, top, right, bottom) in enumerate(placed.boxes.tolist()):
            told = dict(image_id=image, category_id=int(one.labels[i]), score=float(one.scores[i]))
            box = dict(bbox=[left, top, right - left, bottom - top])  # beside it, a mask's size would be the box's
            results.append(told | (dict(segmentation=runs(placed.masks, i)) if kind == "segm" else box))
    with contextlib.redirect_stdout(io.StringIO()):
        base = coco.COCO()
        base.dataset = dict(
            images=[dict(id=i, width=SIDE, height=SIDE) for i in range(len(said))],
            categories=[dict(id=i, name=str(i)) for i in range(3)],
            annotations=annotations,
            info={},
        )
        base.createIndex()
        run = evaluation.COCOeval(base, base.loadRes(results), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats[:6].tolist()


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # COCO's arrays are made as NumPy 1 wants them
@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_cocos(seed):
    said, true = random_scene(np.random.default_rng(seed))
    result = measured(said, true, masks=True)
    for kind, prefix in (("bbox", ""), ("segm", "mask_")):
        expected = dict(zip(ALL, coco_says(said, true, kind), strict=True))
        assert 0.05 < expected["ap"] < 0.95
        ours = {name: result.get(prefix + name, -1) for name in ALL}
        assert ours == pytest.approx(expected, abs=1e-6)  # theirs is float64, ours went through float32


def test_per_class():
    said, true = random_scene(np.random.default_rng(1))
    metric = AveragePrecision(4, masks=True)
    metric.update(said, batch(true))
    each = metric.per_class()
    assert np.isnan(each[3])
    assert np.nanmean(each) == pytest.approx(metric.compute()["ap"], abs=1e-6)  # float32
    assert len(metric.per_class("segm")) == 4


@pytest.mark.parametrize("masks", [True, False])
def test_parts_of_several_processes_are_joined_to_the_same_number(masks):
    """Each process has had images of its own, one of them none; the order of the result is that of the images."""
    said, true = random_scene(np.random.default_rng(2))
    whole = AveragePrecision(3, masks)
    whole.update(said, batch(true))
    parts = [AveragePrecision(3, masks) for _ in range(3)]
    for start, part in ((0, parts[0]), (4, parts[2]), (8, parts[0])):
        part.update(said[start : start + 4], batch(true[start : start + 4], start))
    held = [part.parts for part in parts]
    for part in parts:
        part.join(held)
        assert part.compute() == whole.compute()


def config(**fields) -> DataConfig:
    return DataConfig(**{**dict(source="scenes:20,32", image_size=32, test_size=32, crop="none"), **fields})


def task(masks=True, batch_size=4, **fields) -> Detection:
    about = TaskConfig(name="detection", masks=masks)
    return Detection(open_objects("scenes:20,32", masks=masks), about, config(**fields), batch_size=batch_size)


def test_the_loss_of_a_batch_is_the_mean_of_its_parts():
    whole, output = batch([truth([BOX], [1])] * 4), torch.rand(4, 6)
    made = task()
    parts = [made.loss(output[i : i + 1], whole.part(slice(i, i + 1))) for i in range(4)]
    torch.testing.assert_close(made.loss(output, whole), torch.stack(parts).mean())
    assert made.loss(output, whole).item() == pytest.approx(output[:, :5].sum(1).mean().item())
    assert made.correct(output, whole).item() == pytest.approx(output[:, 5].sum().item())


def test_batches():
    made = task(flip=True, scale=(0.5, 1.0))
    first = next(iter(made.train))
    assert first.images.shape == (4, 3, 32, 32)
    assert all(one.masks is not None for one in first.targets)
    assert any(one.size != (32, 32) for one in first.targets)
    assert [one.size for one in next(iter(made.test)).targets] == [(32, 32)] * 2
    assert next(iter(task(masks=False).train)).targets[0].masks is None


def test_refusals():
    for fields, match in (
        (dict(crop="random"), r"data\.crop \(='random'\) must be 'none' for detection"),
        (dict(mixup=0.2), r"data\.mixup \(=0\.2\) must be 0 for detection"),
    ):
        with pytest.raises(UsageError, match=match):
            task(**fields)
    for fields, match in (
        (dict(name="detection", label_smoothing=0.1), "must be 0 for detection"),
        (dict(name="detection", proposals=0), r"task\.proposals \(=0\) must be at least 1"),
        (dict(name="detection", regions=10**6), r"task\.regions \(=1000000\)"),
        (dict(name="detection", anchor_scale=0), r"task\.anchor_scale \(=0\)"),
        (dict(name="detection", anchor_ratios=()), r"task\.anchor_ratios \(=\[\]\)"),
        (dict(name="detection", anchor_ratios=(1.0, -1.0)), r"task\.anchor_ratios \(=\[1\.0, -1\.0\]\)"),
        (dict(name="depth", masks=False), r"task\.masks \(=False\) is for detection; task\.name is depth"),
        (dict(proposals=5), r"task\.proposals \(=5\) is for detection; task\.name is classification"),
    ):
        with pytest.raises(UsageError, match=match):
            TaskConfig(**fields)


@pytest.mark.parametrize("module", ["pycocotools", "torchmetrics.detection"])
def test_what_is_missing_is_named(monkeypatch, module):
    import sys

    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=r"pip install \"normfree\[detection\]\""):
        AveragePrecision(3, masks=True)


BOX, NEXT, FAR = [10, 10, 50, 50], [12, 10, 52, 50], [80, 80, 110, 110]


@pytest.mark.parametrize(
    ("boxes", "scores", "labels", "share"),
    [
        ([BOX, FAR], [0.9, 0.8], [0, 1], 1),
        ([NEXT, FAR], [0.9, 0.8], [0, 1], 1),  # 38 of 42 pixels' width in common
        ([BOX], [0.9], [0], 1 / 2),  # one missed
        ([], [], [], 0),
        ([BOX, FAR], [0.9, 0.8], [0, 0], 1 / 3),  # one of the wrong class: missed, and seen where there is none
        ([BOX, NEXT, FAR], [0.9, 0.8, 0.7], [0, 0, 1], 2 / 3),  # the same one twice
        ([BOX, NEXT, FAR], [0.9, 0.4, 0.7], [0, 0, 1], 1),  # too unsure to count
        ([[60, 10, 100, 50], BOX, FAR], [0.9, 0.8, 0.7], [0, 0, 1], 2 / 3),
    ],
)
def test_share_of_objects_found(boxes, scores, labels, share):
    answer = share_found(found(boxes, scores, labels), truth([BOX, FAR], [0, 1]))
    assert answer == pytest.approx(share)


def test_share_of_objects_found_where_there_are_none():
    assert share_found(found([], [], []), truth([], [])) == 1
    assert share_found(found([BOX], [0.9], [0]), truth([], [])) == 0


def test_crowds_neither_count_nor_are_they_wrong_to_see():
    crowd = truth([BOX, FAR], [0, 1], crowd=torch.tensor([True, False]))
    assert share_found(found([FAR], [0.9], [1]), crowd) == 1
    assert share_found(found([BOX, FAR], [0.9, 0.9], [0, 1]), crowd) == 1
    assert share_found(found([[60, 10, 100, 50], FAR], [0.9, 0.9], [0, 1]), crowd) == 1 / 2
