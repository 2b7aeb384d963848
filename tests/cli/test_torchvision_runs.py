"""Runs on torchvision's sets."""

import json

import torchvision_files
from tiny_runs import FLAGS, evaluations

TINY = [*FLAGS, "--data.image_size", "16", "--data.test_size", "16", "--data.resize_margin", "0"]


def test_two_epochs_of_cifar10(normfree, tmp_path, monkeypatch):
    monkeypatch.setenv("NORMFREE_DATA", str(torchvision_files.cifar10(tmp_path / "sets", monkeypatch)))
    run = tmp_path / "run"
    flags = ["--data", "torchvision:cifar10", "--train.batch_size", "10", "--epochs", "2", "--out", run]
    result = normfree("train", *TINY, *flags)
    assert result.code == 0, result.err
    assert (
        f"torchvision:CIFAR10:{tmp_path / 'sets'}: 20 training and 4 test images of 10 classes; 4 steps" in result.err
    )
    monkeypatch.delenv("NORMFREE_DATA")  # the run knows where they are
    assert json.loads(normfree("eval", run, "--json").out)["top1"] == evaluations(run)[-1]["ema_top1"]
    result = normfree("train", "--resume", run, "--epochs", "3", "--quiet")
    assert "goes on after step 4 of 6" in result.err


def test_files_are_kept_in_memory(normfree, tmp_path):
    torchvision_files.pets(tmp_path / "sets")
    flags = ["--data", f"torchvision:OxfordIIITPet:{tmp_path / 'sets'}", "--train.batch_size", "3", "--epochs", "2"]
    result = normfree("train", *TINY, *flags, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert "12 images are kept in memory: 1 MB, decoded in" in result.err
    results = []
    for name, more in (("run", []), ("other", ["--data.cache", "false"])):
        if more:
            assert normfree("train", *TINY, *flags, *more, "--out", tmp_path / name).code == 0
        results.append([{k: v for k, v in one.items() if k != "seconds"} for one in evaluations(tmp_path / name)])
    assert [one["ema_loss"] for one in results[0]] == [one["ema_loss"] for one in results[1]]
