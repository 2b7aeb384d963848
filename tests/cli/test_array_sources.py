"""Runs on arrays: two epochs, measured and gone on with as on any other images."""

import json

import array_files
import numpy as np
from tiny_runs import FLAGS, evaluations

TINY = [*FLAGS, "--data.image_size", "8", "--data.test_size", "8", "--data.resize_margin", "0"]
TINY += ["--train.batch_size", "6", "--data.crop", "shift"]


def test_a_run_on_a_file_of_arrays(normfree, tmp_path):
    names = np.array(["a/b", "b", "c"])
    file = array_files.write(tmp_path / "a.npz", dict(train=12, val=6, test=3), classes=names)
    run = tmp_path / "run"
    result = normfree("train", *TINY, "--data", file, "--epochs", "2", "--out", run)
    assert result.code == 0, result.err
    assert "12 training and 6 test images of 3 classes; 4 steps" in result.err
    assert f"test of {file} not used" in result.err
    for flags, images, expected in (
        ([], 6, evaluations(run)[-1]["ema_top1"]),
        (["--data", f"arrays:{file}:test"], 3, None),
    ):
        told = json.loads(normfree("eval", run, *flags, "--json").out)
        assert told["images"] == images
        assert expected is None or told["top1"] == expected
    result = normfree("train", "--resume", run, "--epochs", "3", "--quiet")
    assert result.code == 0
    assert "goes on after step 4 of 6" in result.err
    examples = sorted((run / "examples").iterdir())
    assert examples[0].name == "test0_labela_b.png"
    assert normfree("predict", run, examples[0]).code == 0


def test_several_classes(normfree, tmp_path):
    several = np.eye(3, dtype=np.uint8)[array_files.labels()]
    file = tmp_path / "a.npz"
    np.savez(file, images=array_files.images(), labels=several)
    flags = ["--data", file, "--data.val_fraction", "0.25", "--task.labels", "multi", "--epochs", "2"]
    result = normfree("train", *TINY, *flags, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert json.loads(normfree("eval", tmp_path / "run", "--json").out)["images"] == 3
