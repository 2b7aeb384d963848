"""A run's folder: numbered, never overwritten; its lines and checkpoints."""

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image
from selection import share

from normfree import RunFailed, UsageError
from normfree.training import (
    Run,
    damage,
    find_checkpoint,
    new_folder,
    plot_curves,
    read_checkpoint,
    read_metrics,
    read_weights,
    save_weights,
)

WEIGHTS, EMA = {"w": torch.ones(2)}, {"w": torch.zeros(2)}


def test_folders_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = [str(new_folder(name, None)) for name in ("digits", "digits", "other", "digits")]
    assert made == ["runs/digits", "runs/digits-2", "runs/other", "runs/digits-3"]
    assert all((tmp_path / folder).is_dir() for folder in made)


@pytest.mark.scaled
def test_callers_at_once_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda _: new_folder("digits", None), range(share(600))))
    assert len(set(made)) == len(made)
    assert all((folder / "starting").is_file() for folder in made)


def test_an_asked_for_folder_is_made(tmp_path):
    assert new_folder("digits", str(tmp_path / "deep" / "er")) == tmp_path / "deep" / "er"
    (tmp_path / "empty").mkdir()
    assert new_folder("digits", str(tmp_path / "empty")) == tmp_path / "empty"


@pytest.mark.parametrize("kind", ["file", "folder", "below a file"])
def test_nothing_is_overwritten(tmp_path, kind):
    path = tmp_path / "there"
    if kind == "folder":
        path.mkdir()
        (path / "notes.txt").write_text("mine")
    else:
        path.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    out = path / "run" if kind == "below a file" else path
    with pytest.raises(UsageError, match=rf"--out {out} .*"):
        new_folder("digits", str(out))
    assert sorted(tmp_path.rglob("*")) == before


def test_metrics_are_lines_of_json(tmp_path):
    run = Run(tmp_path, {})
    run.log(kind="train", step=1, clipped=None)
    run.log(kind="eval", step=2, loss=0.5)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    expected = [dict(kind="train", step=1, clipped=None), dict(kind="eval", step=2, loss=0.5)]
    assert [json.loads(line) for line in lines] == expected
    assert read_metrics(tmp_path) == expected


def test_metrics_that_cannot_be_written(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RunFailed, match=r"cannot write .*metrics\.jsonl: a folder, not a file"):
        Run(tmp_path, {}).log(step=1)


def test_checkpoints_come_back_with_their_description(tmp_path):
    run = Run(tmp_path, dict(classes=["a"]))
    assert run.checkpoints.saved_step is None
    run.checkpoints.save(2, dict(weights=EMA), dict(metrics=dict(top1=0.7)), best=True)
    run.checkpoints.save(3, dict(weights=WEIGHTS, ema=EMA), dict(metrics=dict(top1=0.5)))
    assert run.checkpoints.saved_step == 3
    state, description, path = read_checkpoint(tmp_path)
    assert torch.equal(state["w"], EMA["w"])
    assert description == dict(classes=["a"], step=3, top1=0.5, kind="ema")
    assert path == tmp_path / "checkpoints" / "last" / "ema.safetensors"
    for which, kind, expected in [("last", "weights", WEIGHTS), ("last", "ema", EMA), ("best", None, EMA)]:
        state, description, path = read_checkpoint(str(tmp_path), which, kind)
        assert torch.equal(state["w"], expected["w"])
        assert description["kind"] == path.stem
        assert torch.equal(read_checkpoint(path)[0]["w"], expected["w"])  # the file alone is enough


@pytest.mark.parametrize(
    ("path", "which", "kind", "named"),
    [
        ("nowhere", "last", None, r"nowhere does not exist; give a run folder or a \.safetensors file"),
        ("nowhere.safetensors", "last", None, r"nowhere\.safetensors does not exist"),
        ("", "last", "ema", r"checkpoints/last has no ema\.safetensors"),
        ("", "best", None, r"checkpoints has no best checkpoint yet"),
        ("checkpoints", "last", None, r"checkpoints is no run folder; a run folder is what"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_named(tmp_path, path, which, kind, named):
    Run(tmp_path, {}).checkpoints.save(1, dict(weights=WEIGHTS), {})
    with pytest.raises(UsageError, match=named):
        read_checkpoint(tmp_path / path, which, kind)


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [dict(kind="train", step=1, loss=2.3, accuracy=0.1, lr=0.0, clipped=None)],
        [
            dict(kind="train", step=1, loss=2.3, accuracy=0.1, lr=0.1, clipped=0.5),
            dict(kind="eval", step=1, loss=2.2, top1=0.2, ema_loss=2.1, ema_top1=0.3),
            dict(kind="train", step=2, loss=0.0, accuracy=1.0, lr=0.0, clipped=0.0),
        ],
    ],
)
def test_curves_are_a_picture_of_whatever_there_is(tmp_path, lines):
    run = Run(tmp_path, {})
    (tmp_path / "metrics.jsonl").touch()
    for line in lines:
        run.log(**line)
    with Image.open(plot_curves(tmp_path)) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 400
        assert len(picture.convert("L").getcolors()) > 10


def test_paths_may_be_text(tmp_path):
    folder = str(new_folder("run", str(tmp_path / "run")))
    run = Run(folder, dict(model="m"))
    run.log(kind="train", step=1, loss=1.0, accuracy=0.5, lr=0.1, clipped=None)
    run.checkpoints.save(1, dict(weights=WEIGHTS), {})
    assert read_metrics(folder)[0]["step"] == 1
    assert plot_curves(folder).is_file()
    checkpoint, told = find_checkpoint(f"{folder}/checkpoints")
    assert (checkpoint.name, told) == ("step-00000001", [])
    assert damage(str(checkpoint)) is None
    file = str(checkpoint / "weights.safetensors")
    assert read_weights(file)[1]["model"] == "m"
    save_weights(str(tmp_path / "other.safetensors"), WEIGHTS, {})
    assert (tmp_path / "other.safetensors").is_file()


@pytest.mark.parametrize("content", ["", "{", "[1]", "\xff\xfe"])
def test_a_damaged_environment_is_written_anew(tmp_path, content):
    """Emptied by a kill, or changed by another program."""
    (tmp_path / "environment.json").write_bytes(content.encode("latin1"))
    Run(tmp_path, {}).describe(dict(started="now"))
    assert json.loads((tmp_path / "environment.json").read_text()) == dict(started="now")


def test_lines_that_cannot_be_read_are_said_and_left_out(tmp_path):
    run = Run(tmp_path, {})
    run.log(kind="train", step=1, loss=0.5)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write('{"kind": "train"}\n'.encode("utf-16") + b'\n{"kind": "tra')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]
    (told,) = run.drop_after(1)
    assert re.fullmatch(rf"{tmp_path}/metrics.jsonl: \d unreadable lines left out", told)
    assert run.drop_after(1) == []
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]


def test_lines_of_others_are_not_touched(tmp_path):
    """A run rewrites, and empties at a second start, what it writes itself."""
    line = '{"step": 9, "layers": {}}\n'
    names = ("metrics.jsonl", "clipping.jsonl", "spp.jsonl", "notes.jsonl")
    for name in names:
        (tmp_path / name).write_text(line)
    Run(tmp_path, {}).drop_after(3)
    assert [(tmp_path / name).read_text() for name in names] == ["", "", "", line]
    for name in names:
        (tmp_path / name).write_text(line)
    (tmp_path / "starting").touch()
    new_folder("tiny", str(tmp_path))
    assert [(tmp_path / name).read_text() for name in names] == ["", "", "", line]


def test_half_a_line_is_not_left_on_a_full_disk(tmp_path, monkeypatch):
    run = Run(tmp_path, {})
    run.log(kind="train", step=1)
    before, write = (tmp_path / "metrics.jsonl").read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:5]))
    with pytest.raises(RunFailed, match=r"cannot write .*metrics\.jsonl: No space left on device"):
        run.log(kind="train", step=2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
