"""`normfree train --resume`: with other images, to another length, in a folder that is in use."""

import dataclasses
import json
import shutil
import subprocess
import sys

import image_files
import pytest
import torch
import yaml
from checkpoint_files import rewrite_descriptions, rewrite_json
from tiny_runs import FLAGS, evaluations

from normfree.recipes import load_recipe
from normfree.training import environment, find_checkpoint, read_metrics
from normfree.training.checkpoints import read_state

TINY = [*FLAGS, "--train.log_every", "1", "--data.image_size", "8", "--data.test_size", "8", "--optim.ema_decay", "0.9"]
TINY += ["--recipe", "digits", "--train.batch_size", "4", "--optim.warmup_epochs", "1"]


@pytest.fixture
def photos(tmp_path):
    """12 training images in two classes: 3 steps an epoch."""
    return image_files.folder(tmp_path / "photos", train=6)


@pytest.fixture
def run(normfree, tmp_path, photos):
    """A finished run of 2 epochs."""
    result = normfree("train", "--data", f"imagefolder:{photos}", *TINY, "--epochs", 2, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    return tmp_path / "run"


def state(run) -> dict:
    return read_state(find_checkpoint(run / "checkpoints")[0])


def rates(run) -> list[float]:
    return [line["lr"] for line in read_metrics(run) if line["kind"] == "train"]


def rename_class(photos):
    for split in ("train", "val"):
        (photos / split / "cat").rename(photos / split / "zebra")


@pytest.mark.parametrize("before", [False, True])
def test_a_class_that_was_renamed_is_refused(normfree, run, photos, before):
    rename_class(photos)
    if before:  # a run from before this was written down
        (run / "started.json").unlink()
    result = normfree("train", "--resume", run, "--quiet", "--epochs", 3)
    assert result.code == 2
    assert "'cat' is gone, 'zebra' is new" in result.error
    assert state(run)["step"] == 6


def test_another_number_of_images_is_said_once(normfree, run, photos):
    shutil.copy(photos / "train" / "cat" / "0.png", photos / "train" / "cat" / "more.png")
    result = normfree("train", "--resume", run, "--quiet", "--epochs", 3)
    assert result.code == 0, result.err
    assert "13 instead of 12" in result.err
    assert "instead of 12" not in normfree("train", "--resume", run, "--quiet").err


def test_a_set_of_other_images_with_the_same_classes_is_said(normfree, run, photos):
    for image in (photos / "val" / "dog").iterdir():
        image.rename(image.with_name(f"other{image.name}"))
    result = normfree("train", "--resume", run, "--quiet", "--epochs", 3)
    assert result.code == 0
    assert "test images of" in result.err
    assert "are others than before" in result.err


def test_more_epochs_are_those_of_a_longer_run(normfree, run, photos, tmp_path):
    result = normfree("train", "--resume", run, "--quiet", "--epochs", 4)
    assert result.code == 0, result.err
    assert "train.epochs is 4 instead of 2" in result.err
    assert "is that of a run of 12 steps from its start" in result.err
    assert load_recipe(str(run / "recipe.yaml")).train.epochs == 4
    recipe = load_recipe(str(run / "recipe.yaml"))
    given = dict(batch_size=4, total_steps=12, steps_per_epoch=3)
    assert rates(run)[6:] == [recipe.optim.lr_at(step, **given) for step in range(6, 12)]
    assert state(run)["step"] == 12
    again = normfree("train", "--resume", run, "--quiet")
    assert "goes on after step 12 of 12" in again.err


def test_fewer_epochs_than_there_were_are_refused(normfree, run):
    before = (run / "recipe.yaml").read_bytes()
    result = normfree("train", "--resume", run, "--quiet", "--epochs", 1)
    assert result.code == 2
    assert "has done 6 steps already; with this length it would have 3" in result.error
    assert (run / "recipe.yaml").read_bytes() == before


def edit(run, **fields):
    """Change a run's recipe.yaml by hand: ``section__field``."""
    content = yaml.safe_load((run / "recipe.yaml").read_text())
    for name, value in fields.items():
        section, field = name.split("__")
        content[section][field] = value
    (run / "recipe.yaml").write_text(yaml.safe_dump(content))


def test_a_recipe_that_was_edited_is_refused_and_each_field_is_named(normfree, run, photos):
    lines, lr = (run / "metrics.jsonl").read_bytes(), load_recipe(str(run / "recipe.yaml")).optim.lr
    edit(run, optim__lr=0.125, train__seed=7, train__batch_size=6, optim__clipping=None)
    same = ["--data", photos, *TINY, "--epochs", 2, "--out", run, "--resume"]  # its own words have not changed
    for command in (["--resume", run, "--quiet"], same):
        result = normfree("train", *command)
        assert result.code == 2
        for words in (
            f"{run}/recipe.yaml is not what the run was trained by: ",
            f"optim.lr is 0.125 instead of {lr:g}, ",
            "optim.clipping is null instead of ",
            "train.batch_size is 6 instead of 4, train.seed is 7 instead of 0; set it back",
        ):
            assert words in result.error
    assert (run / "metrics.jsonl").read_bytes() == lines


def test_a_length_that_was_edited_is_said(normfree, run):
    edit(run, train__steps=8, train__log_every=4)
    result = normfree("train", "--resume", run, "--quiet")
    assert result.code == 0, result.err
    assert "train.steps is 8 instead of null, train.log_every is 4 instead of 1" in result.err
    assert "that of a run of 8 steps from its start" in result.err
    assert "bit for bit" not in result.err
    again = normfree("train", "--resume", run, "--quiet")
    assert "train.steps" not in again.err  # the checkpoint of step 8 was trained so
    lines = (run / "metrics.jsonl").read_bytes()
    edit(run, train__steps=7)
    result = normfree("train", "--resume", run, "--quiet")
    assert result.code == 2
    assert result.error == (
        "the run has done 8 steps already; with this length it would have 7 (train.steps is 7 instead of 8)"
    )
    assert (run / "metrics.jsonl").read_bytes() == lines


@pytest.mark.parametrize("old", [False, pytest.param(True, marks=pytest.mark.full)])
def test_other_versions_and_threads_are_said_in_a_line(normfree, run, monkeypatch, old):
    if old:  # of a run from before its checkpoints said it
        for checkpoint in (run / "checkpoints").glob("step-*"):
            rewrite_json(checkpoint, dict(format=None), dict(format=None, environment=None))
    software = environment.software() | dict(torch="2.0.1")
    was = environment.software()["torch"]
    assert "bit for bit" not in normfree("train", "--resume", run, "--quiet").err
    monkeypatch.setattr(environment, "software", lambda: software)
    threads = torch.get_num_threads()
    more = ["--epochs", 3, "--train.threads", threads + 1, "--train.micro_batch", 2]
    try:
        result = normfree("train", "--resume", run, "--quiet", *more)
    finally:
        torch.set_num_threads(threads)
    assert result.code == 0, result.err
    (line,) = [line for line in result.err.splitlines() if "bit for bit" in line]
    words = f"torch 2.0.1 instead of {was}, threads {threads + 1} instead of {threads}"
    assert line.startswith(f"goes on, no longer bit for bit: {words}")
    assert line.endswith(", train.micro_batch is 2 instead of null")


def test_a_record_of_a_newer_version_is_refused_by_name(normfree, run):
    content = json.loads((run / "started.json").read_text())
    (run / "started.json").write_text(json.dumps(content | dict(format=99)))
    result = normfree("train", "--resume", run, "--quiet")
    assert result.code == 2
    assert result.error == f"{run}/started.json was written by a newer normfree: format 99, this one reads up to 2"


def test_a_damaged_record_is_survived(normfree, run):
    for content in ("", "[]", '{"images": {}, "asked": 3}', '{"asked": {"train": 1}, "images": {}}'):
        (run / "started.json").write_text(content)
        result = normfree("train", "--resume", run, "--quiet")
        assert result.code == 0, result.err
        assert "only the classes were compared" in result.err


@pytest.mark.parametrize("how", ["folders", "nothing"])
def test_a_run_that_was_copied_without_links_goes_on_working(normfree, run, photos, tmp_path, how):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, symlinks=False)  # as cp -rL; object stores have neither links nor these folders
    if how == "nothing":
        shutil.rmtree(copy / "checkpoints" / "last")
        shutil.rmtree(copy / "checkpoints" / "best")
    image = photos / "val" / "cat" / "0.png"
    for command in (["eval", copy], ["eval", copy, "--checkpoint", "best"], ["predict", copy, image], ["report", copy]):
        result = normfree(*command)
        assert result.code == 0, result.err
    result = normfree("train", "--resume", copy, "--quiet", "--epochs", 3)
    assert result.code == 0, result.err
    assert "goes on after step 6 of 9" in result.err
    assert f"{copy}/checkpoints/last, {copy}/checkpoints/best" in result.out
    assert state(copy)["step"] == 9
    assert (copy / "checkpoints" / "last").is_symlink()


def test_a_warm_restart_begins_again_at_the_peak(normfree, run):
    result = normfree("train", "--resume", run, "--quiet", "--epochs", 4, "--warm-restart")
    assert result.code == 0, result.err
    recipe = load_recipe(str(run / "recipe.yaml"))
    assert recipe.optim.restarts == (6,)
    later = rates(run)[6:]
    assert later[0] == recipe.optim.peak_lr(4)
    assert later == sorted(later, reverse=True)
    assert "begins again at its peak" in result.err


def test_a_warm_restart_needs_a_run_and_more_steps(normfree, run):
    assert "needs --resume RUN" in normfree("train", "--warm-restart").error
    assert "a warm restart needs more: --train.epochs N" in normfree("train", "--resume", run, "--warm-restart").error


def test_patience_ends_a_run_early_and_more_of_it_goes_on(normfree, photos, tmp_path):
    out = tmp_path / "run"
    still = ["--lr", "1.0e-12", "--train.patience", 2, "--epochs", 9]
    result = normfree("train", "--data", photos, *TINY, *still, "--out", out)
    assert result.code == 0, result.err
    assert [line["epoch"] for line in evaluations(out)] == [1, 2, 3]
    assert "stopped after 2 evaluations that were no better than the best (train.patience)" in result.out
    assert read_metrics(out)[-1]["state"] == "finished"
    assert normfree("train", "--resume", out, "--quiet").code == 0
    assert state(out)["step"] == 9
    assert normfree("train", "--resume", out, "--quiet", "--train.patience", 4).code == 0
    assert state(out)["step"] == 15


def test_the_same_command_goes_on_although_the_batch_was_too_large(normfree, photos, tmp_path):
    command = ["train", "--data", photos, *TINY, "--batch-size", 4096, "--epochs", 2, "--out", tmp_path / "run"]
    command = [part for part in command if part not in ("--train.batch_size", "4")] + ["--resume"]
    first = normfree(*command)
    assert first.code == 0, first.err
    assert "train.batch_size (=4096) is more than the 12 training images: batches of 12" in first.err
    assert "2 steps of 12" in first.err
    assert load_recipe(str(tmp_path / "run" / "recipe.yaml")).train.batch_size == 12
    second = normfree(*command)
    assert second.code == 0, second.err
    assert "goes on after step 2 of 2" in second.err
    longer = normfree(*[3 if part == 2 else part for part in command])
    assert "goes on after step 2 of 3" in longer.err
    third = normfree(*command)  # the run is as long as it was made
    assert "goes on after step 3 of 3" in third.err
    assert "is a run with train.seed (=0), not 1" in normfree(*command, "--train.seed", 1).err


def test_a_run_from_before_goes_on_as_it_was(normfree, photos, tmp_path):
    """A batch that is larger than the images, as its recipe.yaml says, and none of the newer fields."""
    out = tmp_path / "run"
    assert normfree("train", "--data", photos, *TINY, "--epochs", 2, "--out", out).code == 0
    (out / "started.json").unlink()
    old = load_recipe(str(out / "recipe.yaml"))
    content = dataclasses.asdict(old)
    for section, field in (("train", "across_epochs"), ("train", "patience"), ("optim", "restarts")):
        del content[section][field]
    content["train"]["batch_size"] = 4096
    (out / "recipe.yaml").write_text(json.dumps(json.loads(json.dumps(content))))
    for checkpoint in (out / "checkpoints").glob("step-*"):
        rewrite_descriptions(checkpoint, lambda description: description.update(recipe=content))
        rewrite_json(checkpoint, dict(format=None), dict(format=None, environment=None))
    result = normfree("train", "--resume", out, "--quiet", "--epochs", 9)
    assert result.code == 0, result.err
    assert "steps of 4096" in result.err
    assert "only the classes were compared" in result.err


def test_a_run_that_still_runs_is_refused_by_name(normfree, run):
    holding = (
        "import sys; from pathlib import Path; from normfree.runs import RunLock; lock = RunLock();"
        "lock.take(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holding, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "lock"}
        for arguments in (["--resume", run], ["--out", run, "--resume"], ["--out", run]):
            result = normfree("train", *arguments, "--quiet")
            assert result.code == 2
            if "--resume" in arguments:
                assert f"is in use by process {other.pid} on" in result.error
        assert {path: path.read_bytes() for path in before} == before
        other.stdin.close()
    assert normfree("train", "--resume", run, "--quiet").code == 0
    assert not (run / "lock").exists()
