"""Runs on a folder without a test split, and on classes of different sizes."""

import json
import re
import shutil

import image_files
import pytest
import yaml
from tiny_runs import FLAGS, evaluations

from normfree.data.held_out import HELD_OUT

SMALL = [*FLAGS, "--data.image_size", "16", "--data.test_size", "16", "--train.batch_size", "8"]


@pytest.fixture
def photos(tmp_path):
    """16 dark cats and 8 bright dogs, in class folders without a split."""
    root = tmp_path / "photos"
    for label, (name, count) in enumerate(dict(cat=16, dog=8).items()):
        for i in range(count):
            image = image_files.pixels(12, 12, seed=i + 100 * label) // 4 + 150 * label
            image_files.write(root / name / f"{i}.png", image.astype("uint8"))
    return root


def test_a_fraction_is_held_out_and_stays_so(normfree, photos, tmp_path):
    run, data = tmp_path / "run", ["--data", f"imagefolder:{photos}"]
    result = normfree("train", *SMALL, *data, "--out", run, "--data.val_fraction", "0.25", "--train.steps", "2")
    assert result.code == 0
    assert f"{photos} has no test split: 6 of 24 images are held out (seed 0)" in result.err
    assert "18 training and 6 test images of 2 classes" in result.err
    held = json.loads((run / HELD_OUT).read_text())["names"]
    assert len(held) == 6
    alone = shutil.copy(run / "checkpoints" / "last" / "ema.safetensors", tmp_path / "alone.safetensors")
    for name in (run, alone):
        told = json.loads(normfree("eval", name, "--json").out)
        assert (told["images"], told["top1"]) == (6, evaluations(run)[-1]["ema_top1"])
    # the list decides, whatever else comes into the folder
    for i in range(30):
        image_files.write(photos / "dog" / f"new{i}.png")
    result = normfree("eval", run, "--json")
    assert json.loads(result.out)["images"] == 6
    assert json.loads(normfree("eval", run, "--data", f"imagefolder:{photos}", "--json").out)["images"] == 6
    assert normfree("report", run).code == 0
    assert "48 to train, 6 to test" in (run / "report.html").read_text()
    result = normfree("eval", alone)
    assert result.code == 2
    assert re.search(f"holds other images than when training began: .*{HELD_OUT}", result.error)
    (photos / held[0]).unlink()
    result = normfree("eval", run, "--json")
    assert json.loads(result.out)["images"] == 5
    assert f"1 of 6 images held out for testing are not there any more: {held[0]}" in result.err


def test_a_resumed_run_holds_out_the_same(normfree, photos, tmp_path):
    flags = [*SMALL, "--data", f"imagefolder:{photos}", "--data.val_fraction", "0.25", "--train.steps", "4"]
    flags += ["--train.save_every", "2", "--data.sampler", "balanced", "--task.class_weights", "auto"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert normfree("train", *flags, "--out", whole).code == 0
    shutil.copytree(whole, cut, symlinks=True)
    first, second = sorted(path for path in (cut / "checkpoints").glob("step-*"))
    shutil.rmtree(second)
    for name in ("last", "best"):
        (cut / "checkpoints" / name).unlink()
        (cut / "checkpoints" / name).symlink_to(first.name)
    result = normfree("train", *flags, "--out", cut, "--resume")  # "auto" is what the run was started with
    assert result.code == 0, result.err
    assert "goes on after step 2 of 4" in result.err
    ends = [(f / "checkpoints" / "last" / "weights.safetensors").read_bytes() for f in (whole, cut)]
    assert ends[0] == ends[1]


def test_a_list_that_is_gone_or_changed_is_not_gone_on_with(normfree, photos, tmp_path):
    """Training images would be tested with, and test images trained with."""
    run = tmp_path / "run"
    flags = [*SMALL, "--data", f"imagefolder:{photos}", "--data.val_fraction", "0.25", "--train.steps", "1"]
    assert normfree("train", *flags, "--out", run).code == 0
    listed = json.loads((run / HELD_OUT).read_text())
    going_on = ["train", "--resume", run, "--train.steps", "2", "--quiet"]
    (run / HELD_OUT).write_text(json.dumps(listed | dict(names=listed["names"][1:])))
    changed = f"{HELD_OUT} of the run has changed: it lists other images than the run has held out"
    for command in (going_on, ["eval", run]):
        result = normfree(*command)
        assert (result.code, result.error) == (2, changed)
    (run / HELD_OUT).unlink()
    image_files.write(photos / "cat" / "new.png")
    result = normfree(*going_on)
    said = f"{run / HELD_OUT} is missing, the list of the images that the run has held out for testing"
    assert (result.code, result.error) == (2, said)
    assert "holds other images than when training began" in normfree("eval", run).error
    (run / HELD_OUT).write_text(json.dumps(listed))
    assert normfree(*going_on).code == 0


def test_class_weights_are_stored_as_numbers(normfree, photos, tmp_path):
    flags = ["--data", f"imagefolder:{photos}", "--data.val_fraction", "0.25", "--train.steps", "1"]
    result = normfree("train", *SMALL, *flags, "--out", tmp_path / "run", "--task.class_weights", "auto")
    assert "class weights: cat 0.75, dog 1.5" in result.err
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["task"]["class_weights"] == [0.75, 1.5]
    result = normfree("train", *SMALL, *flags, "--out", tmp_path / "other", "--task.class_weights", "[1, 2, 3]")
    assert result.code == 2
    assert "has 3 numbers for 2 classes" in result.err


def test_training_and_test_images_may_be_gone(normfree, photos, tmp_path):
    """A trained network is measured on, and predicts, a folder of any form."""
    root = image_files.folder(tmp_path / "whole")
    run = tmp_path / "run"
    assert normfree("train", *SMALL, "--data", f"imagefolder:{root}", "--out", run, "--train.steps", "1").code == 0
    before = normfree("eval", run).out
    shutil.rmtree(root / "train")
    assert normfree("eval", run).out == before
    assert normfree("report", run).code == 0
    assert "classified wrongly" in (run / "report.html").read_text()
    assert normfree("eval", run, "--data", f"imagefolder:{photos}", "--json").code == 0
    assert len(normfree("predict", run, photos, "--json").out.splitlines()) >= 24
    shutil.rmtree(root / "val" / "dog")
    result = normfree("eval", run)
    assert "over 1 of 2 classes: no test image of dog" in result.out
    shutil.rmtree(root)
    assert normfree("eval", run).code == 2
    assert normfree("predict", run, photos / "cat" / "0.png").code == 0


def test_a_majority_class_result_of_training_is_called_that(normfree, tmp_path):
    root = image_files.folder(tmp_path / "photos", train=8, val=4)
    for i in range(4, 12):
        image_files.write(root / "val" / "cat" / f"{i}.png", image_files.pixels(12, 12, seed=i))
    flags = ["--data", f"imagefolder:{root}", "--train.steps", "1", "--optim.lr", "1e-9"]
    result = normfree("train", *SMALL, *flags, "--out", tmp_path / "run")
    accuracy = float(re.search(r"test accuracy ([\d.]+)%", result.out)[1])
    assert ("majority-class result" in result.out) == (accuracy <= 75)
    assert accuracy <= 75
