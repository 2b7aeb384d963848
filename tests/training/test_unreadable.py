"""Unreadable images in a run that mixes: each is read twice an epoch, and named and counted once in the whole run."""

import json

import coco_files
import image_files
import pytest
import torch
from tiny_runs import network, trainer

from normfree import RunFailed
from normfree.data import DataConfig, Loader, Unreadable, image_folder
from normfree.data.coco import coco
from normfree.data.decode import UnreadableImage, decode_image
from normfree.data.detection import ObjectTransform
from normfree.data.sampling import Key
from normfree.tasks import Classification, TaskConfig
from normfree.training.train_state import restore

BROKEN = ["train/cat/b1.png", "train/cat/b2.png", "train/dog/b3.png", "val/dog/b4.png"]
# of forks beside threads, from Python 3.12 on, which is how torch starts workers; of more workers than cores
WARNED = ["This process .* is multi-threaded:DeprecationWarning", "This DataLoader will create .* worker:UserWarning"]
pytestmark = [pytest.mark.filterwarnings(f"ignore:{warned}") for warned in WARNED]
MIXED = dict(mixup=0.2, cutmix=1.0)


@pytest.fixture
def photos(tmp_path):
    """20 readable images to train with and 4 to test, and four that end in the middle."""
    root = image_files.folder(tmp_path / "photos", train=10)
    for name in BROKEN:
        image_files.break_file(root / name)
    return root


def task(root, workers: int, **data) -> Classification:
    config = DataConfig(channels=1, resize_margin=0, crop="shift", workers=workers, **data)
    sizes = dict(image_size=8, test_size=8, batch_size=4, seed=0)
    return Classification(image_folder(str(root), 1), TaskConfig(label_smoothing=0.1), config, **sizes)


def run(folder, root, workers: int, limit: int, data: dict, **train):
    settings = dict(batch_size=4, steps=18, eval_every=1.0, **train)
    model = network()
    model.reset_classifier(2)
    return trainer(folder, task=task(root, workers, **data), model=model, train=settings, max_unreadable=limit)


@pytest.mark.parametrize("data", [MIXED, {}], ids=["mixed", "plain"])
@pytest.mark.parametrize("workers", [0, 2])
def test_each_is_named_and_counted_once(tmp_path, photos, capsys, workers, data):
    """Over four epochs with mixing, workers, and evaluations of raw and averaged weights."""
    trained = run(tmp_path / "run", photos, workers, len(BROKEN), data)
    summary = trained.fit()
    assert summary.steps == 18
    assert trained.state.epoch >= 3
    said = "".join(capsys.readouterr())
    for name in BROKEN:
        assert said.count(f"skipped unreadable image {photos / name}: ") == 1
    assert said.count("skipped unreadable image") == len(BROKEN)
    paths = [one.image for one in summary.unreadable]
    assert sorted(paths) == sorted(str(photos / name) for name in BROKEN)
    assert summary.last["images"] == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_the_limit_counts_images_not_readings(tmp_path, photos, workers):
    run(tmp_path / "enough", photos, workers, len(BROKEN), MIXED).fit()
    with pytest.raises(RunFailed, match=r"unreadable images: 4, more than data\.max_unreadable \(=3\)"):
        run(tmp_path / "few", photos, workers, len(BROKEN) - 1, MIXED).fit()


def test_a_resumed_run_does_not_name_them_again(tmp_path, photos, capsys):
    first = run(tmp_path / "run", photos, 0, len(BROKEN), MIXED)
    first.total_steps = 10
    first.fit()
    assert "".join(capsys.readouterr()).count("skipped unreadable image") == len(BROKEN)
    again = run(tmp_path / "other", photos, 0, len(BROKEN), MIXED)
    again.resume(first.run.checkpoints.folder / "last")
    summary = again.fit()
    assert len(summary.unreadable) == len(BROKEN)
    assert "skipped unreadable image" not in "".join(capsys.readouterr())


def epochs(loader) -> list[list]:
    batches = []
    for number in range(3):
        loader.set_epoch(number)
        batches.append(list(loader))
    return batches


@pytest.mark.parametrize("data", [MIXED, {}, dict(MIXED, randaugment_layers=2)], ids=["mixed", "plain", "augmented"])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_others_are_as_if_nothing_was_unreadable(photos, workers, data):
    """The same order, pixels, labels and ratios, none in place of another; a pair goes with either of its two."""
    damaged = task(photos, workers, **data).train
    names = damaged.loader.dataset.split.samples
    broken = {i for i, (path, _) in enumerate(names) if path in {str(photos / name) for name in BROKEN}}
    assert len(broken) == 3
    keys = []
    for number in range(3):
        damaged.set_epoch(number)
        keys.append([list(batch) for batch in damaged.batches])
    found = epochs(damaged)
    for name in BROKEN[:3]:
        image_files.write(photos / name, image_files.pixels(40, 40))
    for epoch, batches, whole in zip(keys, found, epochs(task(photos, workers, **data).train), strict=True):
        for key, batch, expected in zip(epoch, batches, whole, strict=True):
            lost = [bool({one.index, one.partner} & broken) for one in key]
            kept = [i for i, gone in enumerate(lost) if not gone]
            assert batch.indices.tolist() == [key[i].index for i in kept]
            assert torch.equal(batch.images, expected.images[kept])
            assert torch.equal(batch.labels, expected.labels[kept])
            if data:
                assert torch.equal(batch.partners, expected.partners[kept])
                assert torch.equal(batch.ratios, expected.ratios[kept])
            named = [one.image for one in batch.unreadable]
            first = [
                one.index if one.index in broken else one.partner for one, gone in zip(key, lost, strict=True) if gone
            ]
            assert named == [names[index][0] for index in first]


def test_an_unreadable_partner_is_named(photos):
    split = task(photos, 0, **MIXED).train.loader.dataset
    names = [path for path, _ in split.split.samples]
    broken, fine = names.index(str(photos / BROKEN[0])), names.index(str(photos / "train/cat/0.png"))
    sample = split[Key(index=fine, seed=1, partner=broken, position=0, batch_size=4)]
    assert sample.image is None
    with pytest.raises(UnreadableImage) as caught:
        decode_image(names[broken])
    assert str(sample.error) == str(caught.value)


def test_files_are_counted_whatever_their_names_hold(tmp_path, capsys):
    """Where a folder's name has what stands in front of a reason."""
    root = image_files.folder(tmp_path / "my: photos", train=10)
    for name in BROKEN:
        image_files.break_file(root / name)
    assert len(run(tmp_path / "enough", root, 0, len(BROKEN), {}).fit().unreadable) == len(BROKEN)
    assert capsys.readouterr().err.count("skipped unreadable image") == len(BROKEN)
    with pytest.raises(RunFailed, match=r"unreadable images: 4, more than data\.max_unreadable \(=3\)"):
        run(tmp_path / "few", root, 0, len(BROKEN) - 1, {}).fit()


def test_images_are_counted_not_the_file_that_says_what_is_in_them(tmp_path):
    """Masks of one JSON file: each image whose mask cannot be drawn is one."""
    root = coco_files.coco_folder(tmp_path / "coco", count=6)
    content = json.loads((root / "train.json").read_text())
    for one in content["annotations"][1:]:
        one["segmentation"] = [[1, 2, 3]]
    (root / "train.json").write_text(json.dumps(content))
    split = coco(str(root)).train
    view = ObjectTransform(30, 40, (0.0,) * 3, (1.0,) * 3, train=True)
    found = [one for batch in Loader(split, view, 6, shape=(3, 30, 40), pairs=True) for one in batch.unreadable]
    lost = {one["image_id"] for one in content["annotations"][1:]}
    assert [one.image for one in found] == [str(root / "train" / f"{number - 100}.png") for number in sorted(lost)]
    assert all("train.json: annotation" in one.reason for one in found)
    trained = trainer(tmp_path / "run", max_unreadable=len(lost) - 1)
    with pytest.raises(RunFailed, match=f"unreadable images: {len(lost)}, more than"):
        trained._note(found)


def test_one_image_is_one_whatever_the_reason_is_this_time(tmp_path):
    trained = trainer(tmp_path / "run", max_unreadable=1)
    trained._note([Unreadable("a.png", "truncated")])
    trained._note([Unreadable("a.png", "Input/output error"), Unreadable("a.png", "truncated")])
    assert trained.state.unreadable == [Unreadable("a.png", "truncated")]


def test_the_state_of_a_run_of_an_earlier_version(tmp_path, photos, capsys):
    """It has a message for each image."""
    first = run(tmp_path / "run", photos, 0, len(BROKEN), {})
    first.total_steps = 10
    first.fit()
    state = first.run.checkpoints.folder / "last" / "state.json"
    content = json.loads(state.read_text())
    assert content["unreadable"][0].keys() == {"image", "reason"}
    content["unreadable"] = [f"{one['image']}: {one['reason']}" for one in content["unreadable"]]
    state.write_text(json.dumps(content))
    capsys.readouterr()
    again = run(tmp_path / "other", photos, 0, len(BROKEN), {})
    again.state, _ = restore(state.parent, again.step)
    assert len(again.fit().unreadable) == len(BROKEN)
    assert "skipped unreadable image" not in "".join(capsys.readouterr())
