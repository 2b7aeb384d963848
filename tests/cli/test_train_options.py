"""Options of `normfree train`: short ones, the help, folders without a kind."""

import re

import image_files
import pytest
from tiny_runs import FLAGS

from normfree.cli.options import grouped
from normfree.cli.train_options import parse
from normfree.recipes import field_paths, load_recipe
from normfree.recipes.task import DETECTION


def test_short_options_are_fields():
    _, overrides = parse(
        ["--epochs", "3", "--lr", "0.5", "--batch-size=8", "--micro-batch", "auto", "--parallel", "ddp"]
    )
    assert overrides == {
        "train.epochs": 3,
        "optim.lr": 0.5,
        "train.batch_size": 8,
        "train.micro_batch": "auto",
        "train.parallel": "ddp",
    }
    assert list(parse(["--micro-batch", "null"])[1].values()) == [None]


def test_twice_is_refused(normfree):
    assert (
        normfree("train", "--lr", "1", "--optim.lr", "2").error == "--lr and --optim.lr say the same; give one of them"
    )


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--epochs", "many"], "train.epochs (='many') must be a number"),
        (["--batch-size", "0"], "train.batch_size (=0) must be at least 1"),
        (["--lr", "-1"], "optim.lr (=-1.0) must be above 0"),
        (["--train.patience", "0"], "train.patience (=0) must be at least 1"),
        (["--optim.restarts", "[5, 3]"], "optim.restarts (=[5, 3]) must be rising steps"),
    ],
)
def test_their_errors_are_the_recipes(normfree, options, error):
    result = normfree("train", *options)
    assert result.code == 2
    assert result.error.startswith(error)


def test_a_folder_alone(normfree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image_files.folder(tmp_path / "photos")
    few = [*FLAGS, "--data.image_size", "8", "--data.test_size", "8", "--train.steps", "1"]
    assert normfree("train", "--data", "photos", *few).code == 0
    recipe = load_recipe("runs/folder/recipe.yaml")
    assert recipe.data.source == f"imagefolder:{tmp_path / 'photos'}"
    assert normfree("eval", "runs/folder", "--data", "photos").code == 0


def test_the_help_shows_defaults_by_use(capsys):
    from normfree.cli import main

    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    for path, item in field_paths().items():
        assert len(re.findall(rf"^  --{re.escape(path)}  \(", text, re.M)) == 1, path
        assert item.type is not None
    assert "--optim.lr  (a number; 0.1)" in text
    assert "--train.steps  (an integer or null; null)" in text
    assert "--data.scale  (a list (each entry a number); [1.0, 1.0])" in text
    assert "--data.crop  (one of distorted, shift, random, none; distorted)" in text
    names = "classification, segmentation, depth, detection, regression, volumes"
    assert re.search(rf"--task.name  \(one of {names}(, \w+)*; classification\)", text)
    for short in ("--epochs", "--lr", "--batch-size", "--warm-restart"):
        assert re.search(rf"^  {short}\b", text, re.M)
    assert max(map(len, text.splitlines())) <= 120


def test_every_field_is_in_one_group_and_detections_are_apart():
    groups = grouped(list(field_paths()))
    assert sorted(path for some in groups.values() for path in some) == sorted(field_paths())
    assert groups["detection alone"] == [f"task.{name}" for name in DETECTION]
    assert not set(groups["task"]) & set(groups["detection alone"])
    assert grouped(["new.field"]) == {"new": ["new.field"]}


def test_two_lengths_are_refused(normfree):
    said = normfree("train", "--epochs", "2", "--train.steps", "9").error
    assert said == "--train.epochs and --train.steps both say how long the run is; give one of them"


def test_data_that_is_not_there_or_empty_is_said(normfree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "cat.png").touch()
    for source, said in (("nowhere", "does not exist"), ("cat.png", "is a file"), ("empty", "empty is empty")):
        assert said in normfree("train", "--data", source).error


def test_an_address_is_said_as_it_was_given(normfree, trained):
    said = normfree("predict", trained, "https://example.com/a.jpg").error
    assert said == "https://example.com/a.jpg does not exist"
