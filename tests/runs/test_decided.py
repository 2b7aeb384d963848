"""`normfree train PHOTOS`: what follows from the images is said, stored, and never overrides what is given."""

import re
import shutil

import image_files
import pytest
from tiny_runs import FLAGS, evaluations

import normfree as library
from normfree.recipes import load_recipe

SHORT = [*FLAGS, "--data.workers", "0", "--train.precision", "float32"]
TINY = [*SHORT, "--data.image_size", "16", "--train.batch_size", "4", "--train.steps", "4"]


@pytest.fixture
def photos(tmp_path):
    """10 cats and 5 dogs in class folders, without a split."""
    for name, count in dict(cat=10, dog=5).items():
        for i in range(count):
            image_files.write(tmp_path / "photos" / name / f"{i}.png", image_files.pixels(20, 24, seed=i))
    return tmp_path / "photos"


def stored(run):
    return load_recipe(str(run / "recipe.yaml"))


def test_a_folder_is_all_that_must_be_given(normfree, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = normfree("train", photos, *FLAGS, "--train.steps", "3")
    assert result.code == 0, result.err
    assert "photos has no test split: 3 of 15 images are held out (seed 0)" in result.err
    assert "12 training images, median side 20 px: training takes 3 steps of 12 " in result.err
    recipe = stored(tmp_path / "runs" / "folder")
    assert (recipe.data.image_size, recipe.data.test_size, recipe.data.val_fraction) == (64, 64, 0.2)
    assert (recipe.train.batch_size, recipe.train.steps, recipe.data.decides) == (12, 3, ())
    again = normfree("train", photos, *FLAGS, "--train.steps", "3")
    assert again.code == 0
    assert (tmp_path / "runs" / "folder-2").is_dir()
    assert stored(tmp_path / "runs" / "folder-2") == recipe


def test_what_is_given_stays_and_is_said(normfree, photos, tmp_path):
    run = tmp_path / "run"
    given = ["--optim.lr", "0.07", "--data.crop", "none", "--data.val_fraction", "0.4", "--optim.warmup_epochs", "0"]
    result = normfree("train", *TINY, "--out", run, *given, photos)
    assert result.code == 0, result.err
    recipe = stored(run)
    assert (recipe.optim.lr, recipe.data.crop, recipe.data.val_fraction) == (0.07, "none", 0.4)
    assert (recipe.data.image_size, recipe.train.batch_size, recipe.train.steps) == (16, 4, 4)
    assert (recipe.optim.warmup_steps, recipe.optim.warmup_epochs, recipe.data.test_size) == (None, 0.0, 16)
    line = next(line for line in result.err.splitlines() if "median side" in line)
    assert "given: " in line
    assert all(path in line for path in ("optim.lr", "data.crop", "train.steps"))


def test_a_test_split_of_its_own_is_used(normfree, tmp_path):
    result = normfree("train", image_files.folder(tmp_path / "photos"), *TINY, "--out", tmp_path / "run")
    assert result.code == 0
    assert "8 training and 4 test images" in result.err
    assert stored(tmp_path / "run").data.val_fraction is None


def test_a_resumed_run_has_the_same_numbers(normfree, photos, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    flags = [*TINY, photos, "--train.save_every", "2"]
    assert normfree("train", *flags, "--out", whole).code == 0
    assert normfree("train", *flags, "--out", cut).code == 0
    shutil.rmtree(sorted((cut / "checkpoints").glob("step-*"))[-1])
    for name in ("last", "best"):
        (cut / "checkpoints" / name).unlink(missing_ok=True)
    resumed = normfree("train", *flags, "--out", cut, "--resume")
    assert resumed.code == 0, resumed.err
    assert stored(cut) == stored(whole)
    assert evaluations(cut)[-1] == evaluations(whole)[-1]


def test_weights_bring_their_size_and_fewer_steps(normfree, photos, tmp_path):
    first = tmp_path / "first"
    assert normfree("train", *TINY, photos, "--out", first).code == 0
    run = library.runs.train(
        overrides={"data.source": str(photos), "data.workers": 0, "train.steps": 2, "train.device": "cpu"},
        init=first,
        out=tmp_path / "tuned",
        progress=False,
    )
    recipe = stored(run.folder)
    assert recipe.data.image_size == recipe.data.test_size == 16
    assert recipe.optim.lr < 0.05


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], r"'nowhere' does not exist; normfree train takes a folder of images"),
        (["nf_resnet50"], r"nf_resnet50 is a recipe, not a folder of images; --recipe nf_resnet50 takes it"),
        (["{empty}"], r"empty is empty; it must hold"),
        (["{file}"], r"as a folder, .*file.jpg is a file"),
        (["{one}"], r"holds one class folder \(cat\); a classifier needs two or more classes"),
        (["{single}"], r"needs two images of every class, one to train and one to test; dog has one"),
        (["{one}", "{empty}"], r"empty' is unexpected: the images are '.*one'; give one folder of them"),
        (["{one}", "--data", "digits"], r"one' and --data 'digits' both say which images; give one of them"),
        (["-q"], r"argument '-q' is unexpected"),
    ],
)
def test_wrong_folders(normfree, tmp_path, arguments, said):
    places = {name: tmp_path / name for name in ("empty", "one", "single")} | {"file": tmp_path / "file.jpg"}
    places["empty"].mkdir()
    image_files.write(places["file"])
    for i in range(3):
        image_files.write(places["one"] / "cat" / f"{i}.png")
        image_files.write(places["single"] / "cat" / f"{i}.png")
    image_files.write(places["single"] / "dog" / "0.png")
    result = normfree("train", *(argument.format(**places) for argument in arguments))
    assert result.code == 2
    assert re.search(said, result.error), result.err
    assert not (tmp_path / "runs").exists()
