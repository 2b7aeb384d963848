"""Images kept in memory: nothing but the time differs, and when they are kept."""

import dataclasses
import threading
import warnings
from typing import Any

import coco_files
import image_files
import numpy as np
import pair_files
import pytest
import shard_files
import torch
from PIL import Image

from normfree import RunFailed, UsageError
from normfree.data import Objects, UnreadableImage, memory, open_source
from normfree.data.memory import Kept, kept
from normfree.data.sources import FolderSplit, Source
from normfree.recipes import load_recipe
from normfree.tasks import open_images, task_of


def options(**more) -> dict[str, Any]:
    return dict(pairs=False, passes=2) | more


@pytest.mark.parametrize("dtype", memory.TYPES)
@pytest.mark.parametrize("last", [False, True])
def test_tensors_are_kept_as_they_are(dtype, last, monkeypatch):
    monkeypatch.setattr(memory, "CHUNK", 500)  # so that there are several
    values = [torch.arange(3 * h * 7).view(h, 7, 3).to(dtype) for h in (2, 5, 1, 4)]
    values = [one.permute(2, 0, 1) if last else one.permute(2, 0, 1).contiguous() for one in values]
    pack = Kept(5)
    for index, one in enumerate(values):
        pack.put(index, one)
    for index, one in enumerate(values):
        got = pack.get(index)
        assert torch.equal(got, one)
        assert (got.dtype, got.stride()) == (dtype, one.stride())
    assert (3 in pack, 4 in pack) == (True, False)


@pytest.mark.parametrize(("most", "size"), [(255, 1), (256, 2), (2**15, 4), (2**31, 8), (-1, 2)])
def test_masks_take_the_smallest_type(most, size):
    mask = torch.zeros(16, 16, dtype=torch.int64)
    mask[3, 4] = most
    pack = Kept(1)
    pack.put(0, mask)
    assert pack.bytes == 256 * size
    assert torch.equal(pack.get(0), mask)


def turned_masks(root):
    pair_files.masks_folder(root)
    for part in ("train", "val"):  # a photo that is turned, whose mask is for the stored pixels
        path = root / part / "images" / "2.png"
        image = np.asarray(Image.open(path))[:20]
        Image.fromarray(image).save(path)
        image_files.turn(path, 6, shown=False)
        mask = np.asarray(Image.open(root / part / "masks" / "2.png"))[:20]
        Image.fromarray(mask).save(root / part / "masks" / "2.png")
    return f"masks:{root}"


def labelled(root, cells: str):
    for i in range(8):
        image_files.write(root / f"{i}.png", image_files.pixels(9 + i, 12, seed=i))
    rows = [f"{i}.png,{cells.split()[i % len(cells.split())]},{'val' if i > 5 else 'train'}" for i in range(8)]
    (root / "labels.csv").write_text("\n".join(["file,class,split", *rows]))
    return f"csv:{root / 'labels.csv'}"


def deep(root):
    for part in ("train", "val"):
        for label in ("a", "b"):
            for i in range(3):
                values = np.random.default_rng(i).integers(0, 4096, (20 + i, 16), dtype=np.uint16)
                image_files.write(root / part / label / f"{i}.png", values)
    return f"imagefolder:{root}"


CASES = {
    "classes": ("folder", lambda root: f"imagefolder:{image_files.folder(root)}", {}),
    "mixed": (
        "folder",
        lambda root: f"imagefolder:{image_files.folder(root)}",
        {"data.mixup": 0.2, "data.cutmix": 1.0, "data.randaugment_layers": 2},
    ),
    "deep": ("folder", deep, {"data.channels": 1}),
    "several": ("folder", lambda root: labelled(root, "a a;b c;a"), {"task.labels": "multi"}),
    "numbers": (
        "folder",
        lambda root: labelled(root, "1.5 2 4"),
        {"task.name": "regression", "task.label_smoothing": 0},
    ),
    "shards": ("folder", lambda root: f"wds:{shard_files.folder(root)}", {}),
    "masks": ("demo_segmentation", turned_masks, {}),
    "depth": ("demo_depth", lambda root: f"depth:{pair_files.depth_folder(root)}", {}),
    "objects": ("demo_detection", lambda root: f"coco:{coco_files.coco_folder(root)}", {}),
}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, Objects):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    if dataclasses.is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    if isinstance(one, (list, tuple)) or hasattr(one, "items"):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


@pytest.mark.parametrize("case", CASES)
def test_batches_are_the_same_to_the_last_bit(tmp_path, case):
    name, make, fields = CASES[case]
    if name == "demo_detection":
        pytest.importorskip("pycocotools")
    root = tmp_path / "images"
    root.mkdir()
    sizes = {"data.source": make(root), "data.image_size": 16, "data.test_size": 16, "train.batch_size": 3}
    batches = []
    for cache in (False, True):
        recipe = load_recipe(name, sizes | fields | {"data.cache": cache, "data.workers": 0})
        task = task_of(recipe).from_recipe(recipe, open_images(recipe))
        assert any("are kept in memory: 1 MB, decoded in" in note for note in task.notes) == cache
        seen = []
        for loader in (task.train, task.test):
            for epoch in range(2):
                loader.set_epoch(epoch)
                seen += list(loader)
        batches.append(seen)
    assert len(batches[0]) == len(batches[1]) >= 6
    assert all(same(one, other) for one, other in zip(*batches, strict=True))


def test_unreadable_images_stay_so(tmp_path):
    root = image_files.folder(tmp_path)
    image_files.break_file(root / "train" / "dog" / "1.png")
    source = open_source(f"imagefolder:{root}")
    split = kept(source, None, **options()).train
    broken = [i for i in range(len(split)) if "dog/1" in split.name(i)]
    for index in range(len(split)):
        if index not in broken:
            assert torch.equal(split.image(index), source.train.image(index))
            continue
        with pytest.raises(UnreadableImage) as expected:
            source.train.image(index)
        (root / "train" / "dog" / "1.png").unlink()  # nothing is read again
        for _ in range(2):
            with pytest.raises(UnreadableImage) as caught:
                split.image(index)
            assert str(caught.value) == str(expected.value)


def test_when_images_are_kept(tmp_path, monkeypatch):
    source = open_source(f"imagefolder:{image_files.folder(tmp_path)}")
    assert kept(source, None, **options()) is not None
    assert kept(source, None, **options(passes=1)) is None
    assert kept(source, True, **options(passes=1)) is not None
    assert kept(source, False, **options()) is None
    monkeypatch.setattr(memory, "AUTOMATIC", 12 * 10 * 12 * 3)
    assert kept(source, None, **options()) is None
    assert kept(source, True, **options()) is not None
    monkeypatch.setattr(memory, "AUTOMATIC", 12 * 13 * 12 * 3)
    assert kept(source, None, **options()) is not None
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # each has its own
    assert kept(source, None, **options()) is None


def test_computed_images_are_not_kept():
    for name in ("digits", "synthetic:200"):
        assert kept(open_source(name), True, **options()) is None


def test_more_than_the_machine_has(tmp_path, monkeypatch):
    source = open_source(f"imagefolder:{image_files.folder(tmp_path)}")
    monkeypatch.setattr(memory, "memory", lambda: 1000)
    assert kept(source, None, **options()) is None
    with pytest.raises(
        UsageError, match=r"data\.cache \(=True\): decoded images take about 1 MB, and this machine has"
    ):
        kept(source, True, **options())


@pytest.mark.parametrize(("side", "workers"), [(96, 0), (97, 3)])
def test_small_images_need_no_processes(tmp_path, monkeypatch, side, workers):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(3)), raising=False)
    path = image_files.write(tmp_path / "a.png", image_files.pixels(side, 8))
    split = FolderSplit([(str(path), 0)] * 120, 3)
    found = kept(Source(split, split, ["a"]), None, **options())
    assert found.workers == workers
    assert found.told.startswith("240 images are kept in memory: 1 MB, decoded in ")
    # a process that does not share this one's memory would copy it
    monkeypatch.setattr(memory, "_shared", lambda: False)
    assert (kept(Source(split, split, ["a"]), None, **options()) is None) == (workers > 0)


def test_limits_of_images_hold_in_threads(tmp_path, monkeypatch):
    root = image_files.folder(tmp_path)
    source = open_source(f"imagefolder:{root}")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12 * 11)
    before = list(warnings.filters)
    split = kept(source, True, **options()).train
    assert warnings.filters == before
    assert sorted(split.unreadable) == [3, 7]
    with pytest.raises(UnreadableImage) as expected:
        source.train.image(3)
    assert split.unreadable[3] == str(expected.value)


def test_an_image_that_takes_too_long(tmp_path, monkeypatch):
    source = open_source(f"imagefolder:{image_files.folder(tmp_path)}")
    go_on = threading.Event()
    monkeypatch.setattr(memory, "looked_at", lambda split, pairs: (100.0, 10))
    image = FolderSplit.image
    monkeypatch.setattr(FolderSplit, "image", lambda self, i: (go_on.wait(30) if i == 2 else None, image(self, i))[1])
    with pytest.raises(RunFailed, match=r"image .*/2\.png is not decoded after 0\.3 s \(data\.timeout\)"):
        kept(source, None, **options(timeout=0.3))
    go_on.set()
