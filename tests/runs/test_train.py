"""`normfree train`: what lies in the run folder, what repeats a run, from which weights it starts, and what ends it."""

import os
import pickle

import image_files
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_runs import FLAGS, evaluations, network

from normfree.recipes import load_recipe
from normfree.runs import pictures
from normfree.runs.pictures import draw_film
from normfree.training import read_checkpoint, read_metrics
from normfree.weights import to_haiku

SHORT = [*FLAGS, "--train.steps", "2"]
SMALL_IMAGES = ["--data.image_size", "16", "--data.test_size", "16", "--data.resize_margin", "4"]
SMALL_IMAGES += ["--train.batch_size", "4", "--optim.warmup_epochs", "0"]


def weights(folder, kind="weights") -> dict[str, torch.Tensor]:
    return read_checkpoint(folder, "last", kind)[0]


def identical(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_folder(trained):
    names = {str(p.relative_to(trained)) for p in trained.rglob("*") if p.is_file() and "examples" not in str(p)}
    parts = [f"{kind}.safetensors" for kind in ("weights", "ema", "momentum", "random")] + [
        "state.json",
        "manifest.json",
    ]
    steps = {path.name for path in (trained / "checkpoints").glob("step-*")}
    assert "step-00000060" in steps
    assert {os.readlink(trained / "checkpoints" / which) for which in ("last", "best")} <= steps
    files = {f"checkpoints/{step}/{part}" for step in steps for part in parts}
    assert {name for name in names if not name.startswith(("checkpoints/last", "checkpoints/best"))} == {
        "recipe.yaml",
        "metrics.jsonl",
        "clipping.jsonl",
        "environment.json",
        "curves.png",
        "started.json",
    } | files
    with Image.open(trained / "curves.png") as picture:
        picture.load()
    lines = read_metrics(trained)
    assert {line["kind"] for line in lines} == {"train", "eval", "end"}
    assert lines[-1] == dict(kind="end", step=60, state="finished", reason="")
    assert evaluations(trained)[-1]["step"] == 60
    assert evaluations(trained)[-1]["ema_top1"] > 0.2  # chance is 0.1, give or take 0.016
    expected = load_recipe("digits", {"train.steps": 60, "train.device": "cpu", "optim.warmup_epochs": 1})
    expected.optim.ema_decay = 0.9
    # filled in, as sizes are
    expected.data.test_crop, expected.data.value_range = "centre", (0.0, 255.0)
    expected.model.options = dict(depths=[1, 1, 1], widths=[16, 16, 32])
    assert load_recipe(str(trained / "recipe.yaml")) == expected
    examples = sorted((trained / "examples").iterdir())
    assert len(examples) == 10
    with Image.open(examples[0]) as picture:
        assert (picture.size, picture.mode) == ((8, 8), "L")


def test_a_film_that_cannot_be_drawn_is_a_warning(tmp_path, capsys, monkeypatch):
    def broken(film):
        raise ValueError("two\nlines")

    draw_film(tmp_path)  # there is none
    assert not capsys.readouterr().err
    monkeypatch.setattr(pictures, "read_film", lambda path: [])
    monkeypatch.setattr(pictures, "plot_film", broken)
    draw_film(tmp_path)
    assert capsys.readouterr().err == f"warning: {tmp_path / 'spp.png'} is not drawn: ValueError: two lines\n"


def test_runs_are_numbered_and_never_overwritten(normfree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/digits", "runs/digits-2"):
        result = normfree("train", *SHORT)
        assert result.code == 0
        assert f"normfree eval {folder}\n" in result.out
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    result = normfree("train", *SHORT, "--out", "runs/digits")
    assert result.code == 2
    assert result.error.startswith("--out runs/digits exists already")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_its_own_recipe_repeats_a_run_bit_for_bit(normfree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = [*SHORT, "--train.seed", "3", "--optim.lr=0.5", "--optim.clipping", "0.1", "--data.crop", "none"]
    assert normfree("train", *first, "--out", "a").code == 0
    assert normfree("train", "--quiet", "--recipe", "a/recipe.yaml", "--out", "b").code == 0
    assert normfree("train", *first, "--train.seed", "4", "--out", "c").code == 0
    assert (tmp_path / "a" / "recipe.yaml").read_text() == (tmp_path / "b" / "recipe.yaml").read_text()
    for kind in ("weights", "ema"):
        assert identical(weights("a", kind), weights("b", kind))
        assert not identical(weights("a", kind), weights("c", kind))


def test_a_recipe_file_names_the_run(normfree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = dict(name="nf_resnet26_small", options=dict(depths=[1], widths=[8]))
    data = dict(channels=1, image_size=8, test_size=8, resize_margin=0)
    recipe = dict(model=model, data=data, train=dict(steps=1, device="cpu"))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    assert normfree("train", "--recipe", "mine.yaml", "--quiet").code == 0
    expected = load_recipe("mine.yaml")
    expected.data.test_crop, expected.data.value_range = "centre", (0.0, 255.0)
    assert load_recipe("runs/mine/recipe.yaml") == expected


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--micro-batch", "many"], "train.micro_batch (='many') must be an integer or one of auto or null"),
        (["--micro-batch", "0"], "train.micro_batch (=0) must be at least 1"),
        (["--parallel", "all"], "train.parallel (='all') must be one of ddp, fsdp"),
        (["--train.activation_checkpointing", "[9]"], "train.activation_checkpointing (=[9]): stage 9 is not there"),
        (["--train.skip_nonfinite", "-1"], "train.skip_nonfinite (=-1) must be at least 0"),
    ],
)
def test_how_it_is_computed_is_checked_before_anything_is_written(normfree, tmp_path, options, error):
    result = normfree("train", *FLAGS, *options, "--out", tmp_path / "run")
    assert result.code == 2
    assert result.error.startswith(error)
    assert not (tmp_path / "run").exists()


def test_divergence_is_a_failed_run(normfree, tmp_path):
    out = tmp_path / "run"
    diverging = ["--optim.lr", "1e12", "--optim.clipping", "null", "--optim.warmup_epochs", "0"]
    result = normfree("train", *FLAGS, *diverging, "--out", out)
    assert result.code == 1
    line = result.err.splitlines()[-1]
    assert line.startswith("normfree: training stopped in step ")
    assert line.endswith(f"the checkpoint of step 0 is kept in {out}/checkpoints/last")
    assert "Traceback" not in result.err
    assert normfree("eval", out).code == 0  # what is kept can be used


def test_own_images(normfree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = image_files.folder(tmp_path / "photos", train=8)
    image_files.break_file(root / "train" / "cat" / "bad.png")
    result = normfree("train", "--data", f"imagefolder:{root}", *FLAGS, *SMALL_IMAGES, "--train.epochs", "12")
    assert result.code == 0, result.err
    run = tmp_path / "runs" / "folder"
    recipe = load_recipe(str(run / "recipe.yaml"))
    assert (recipe.data.source, recipe.model.name) == (f"imagefolder:{root}", "nf_resnet23_small")
    assert "17 training and 4 test images of 2 classes" in result.err
    assert "skipped unreadable image" in result.out + result.err
    assert "cat/bad.png: " in result.out + result.err
    assert "1 unreadable image" in result.out
    assert not (run / "examples").exists()
    assert "IMAGE_OR_FOLDER" in result.out
    assert evaluations(run)[-1]["top1"] == 1.0  # one class is bright, the other dark
    assert normfree("eval", run).out.splitlines()[0].endswith("4 images")
    predicted = normfree("predict", run, root / "val" / "dog")
    assert predicted.code == 0
    assert [line.split()[1] for line in predicted.out.splitlines() if line.startswith(" ")][:4:2] == ["dog", "dog"]


def test_too_many_unreadable_images(normfree, tmp_path):
    root = image_files.folder(tmp_path / "photos")
    for i in range(3):
        image_files.break_file(root / "train" / "cat" / f"bad{i}.png")
    flags = ["--data", f"imagefolder:{root}", *FLAGS, *SMALL_IMAGES, "--out", tmp_path / "run"]
    result = normfree("train", *flags, "--data.max_unreadable", "2")
    assert result.code == 1
    assert "unreadable images: 3, more than data.max_unreadable (=2)" in result.err.splitlines()[-1]


def test_starting_from_a_run(normfree, trained, tmp_path):
    # the first step of a warm-up has learning rate 0, so one step shows what training started from
    result = normfree("train", *FLAGS, "--train.steps", "1", "--init", trained, "--out", tmp_path / "a")
    assert result.code == 0
    assert f"weights from {trained}" in result.err
    assert identical(weights(tmp_path / "a"), weights(trained, "ema"))
    raw = trained / "checkpoints" / "last" / "weights.safetensors"
    assert normfree("train", *FLAGS, "--train.steps", "1", "--init", raw, "--out", tmp_path / "b").code == 0
    assert identical(weights(tmp_path / "b"), weights(trained))


def test_starting_from_a_run_with_other_classes(normfree, trained, tmp_path):
    root = image_files.folder(tmp_path / "photos")
    flags = ["--recipe", "digits", "--data", f"imagefolder:{root}", *FLAGS, "--train.steps", "1"]
    result = normfree("train", *flags, "--init", trained, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert "with a new classifier (2 classes instead of 10)" in result.err
    got, start = weights(tmp_path / "run"), weights(trained, "ema")
    assert got["head.fc.weight"].shape[0] == 2
    same = {k for k in start if not k.startswith("head.fc")}
    assert identical({k: got[k] for k in same}, {k: start[k] for k in same})


def test_starting_from_the_authors_format(normfree, tmp_path):
    model = network()
    (tmp_path / "w.npz").write_bytes(
        pickle.dumps({m: {n: np.asarray(a) for n, a in p.items()} for m, p in to_haiku(model).items()})
    )
    result = normfree("train", *FLAGS, "--train.steps", "1", "--init", tmp_path / "w.npz", "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert identical(weights(tmp_path / "run"), dict(model.state_dict()))


@pytest.mark.parametrize("kind", ["nowhere", "another architecture", "no weights", "npz of something else"])
def test_a_start_that_does_not_fit(normfree, trained, tmp_path, kind):
    start, flags = trained, FLAGS
    if kind == "nowhere":
        start = tmp_path / "nowhere"
    elif kind == "another architecture":
        flags = [*FLAGS, "--model.options.widths", "[16,16,48]"]
    elif kind == "no weights":
        start = trained / "metrics.jsonl"
    else:
        start = tmp_path / "w.npz"
        np.savez(start, a=np.zeros(3))
    result = normfree("train", *flags, "--init", start, "--out", tmp_path / "run")
    assert result.code == 2
    assert str(start) in result.error
    assert not (tmp_path / "run").exists()


def test_a_recipe_without_a_model_is_refused(normfree, tmp_path):
    (tmp_path / "empty.yaml").write_text("optim: {lr: 1.0}\n")
    result = normfree("train", "--recipe", str(tmp_path / "empty.yaml"))
    assert result.code == 2
    assert "model.name is not given" in result.err
