"""Runs from Python: what the commands do, and what they say as data."""

import json

import pytest
import torch
import yaml
from PIL import Image
from tiny_runs import OPTIONS

import normfree
from normfree import UsageError, runs
from normfree.cli import main
from normfree.runs import start

FIELDS = {"train.device": "cpu", "train.steps": 4, "model.options": {name: list(v) for name, v in OPTIONS.items()}}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> runs.Finished:
    out = tmp_path_factory.mktemp("runs") / "first"
    return runs.train("digits", FIELDS, out=str(out), progress=False)


def printed(capsys, *arguments) -> list[dict]:
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_run_is_that_of_the_command(run):
    assert (run.summary.steps, run.main) == (4, True)
    assert run.summary.last["images"] == 360
    assert yaml.safe_load((run.folder / "recipe.yaml").read_text())["train"]["steps"] == 4
    assert {path.name for path in run.folder.iterdir()} >= {"checkpoints", "metrics.jsonl", "curves.png", "examples"}


def test_a_folder_alone_has_the_recipe_of_the_command(tmp_path, monkeypatch):
    for place in ("train/cat/a.png", "train/dog/b.png", "val/cat/c.png", "val/dog/d.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / place)

    def chosen(name, fields, say):
        raise UsageError(f"{name} on {fields['data.source']}")

    monkeypatch.setattr(start, "load_recipe", chosen)
    with pytest.raises(UsageError, match=f"^folder on imagefolder:{tmp_path}$"):
        runs.train(overrides={"data.source": str(tmp_path)})


def test_it_goes_on(run, tmp_path):
    longer = runs.train(overrides=FIELDS | {"train.steps": 6}, out=str(tmp_path / "same"), resume=True, progress=False)
    assert longer.summary.steps == 6  # there was none to go on with
    again = runs.train(overrides={"train.steps": 8}, resume=longer.folder, progress=False)
    assert (again.summary.steps, again.folder) == (8, longer.folder)


def test_other_weights(run, tmp_path):
    fields = {"train.device": "cpu", "train.steps": 1, "optim.lr": 1e-20}
    tuned = runs.train("digits", fields, out=str(tmp_path / "tuned"), init=str(run.folder), progress=False)
    before = runs.load(run.folder).model  # averaged weights, with which a run starts as well
    after = runs.load(tuned.folder, weights="raw").model
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-15) for a, b in pairs)
    assert "weights from " in runs.initialize(before, str(run.folder))


def test_it_is_measured(run, capsys):
    found = runs.evaluate(run.folder)
    (line,) = printed(capsys, "eval", run.folder, "--json")
    assert dict(found.measured.scores) == {name: line[name] for name in found.measured.scores}
    assert (found.images, found.data) == (360, "digits")
    network = runs.load(run.folder)
    assert runs.evaluate(network, size=16).measured.scores["top1"] != found.measured.scores["top1"]
    again = runs.evaluate(network, batch_size=7)  # not at that size any more
    assert again.measured.scores["top1"] == found.measured.scores["top1"]


def test_it_answers(run, capsys):
    answers = list(runs.predictions(run.folder, run.folder / "examples", top=2))
    assert answers == printed(capsys, "predict", run.folder, run.folder / "examples", "--top", 2, "--json")
    assert len(answers) == 10
    (one,) = runs.predictions(str(run.folder), sorted((run.folder / "examples").iterdir())[0], top=1)
    assert len(one["classes"]) == 1


def test_a_network_in_memory(run):
    network = runs.load(run.folder)
    assert network.shape == (1, 8, 8)
    view = network.view(torch.zeros(1, 20, 20, dtype=torch.uint8))
    assert network.model(view[None]).shape == (1, 10)


def test_what_cannot_be_used_is_named(tmp_path):
    with pytest.raises(UsageError, match="--resume without a run needs --out"):
        runs.train(resume=True)
    with pytest.raises(UsageError, match=f"{tmp_path} "):
        runs.load(str(tmp_path))
    with pytest.raises(UsageError, match="nowhere does not exist"):
        list(runs.predictions("./nowhere", "x.png"))


def test_rooms_are_there_when_they_are_asked_for():
    assert normfree.runs.train is runs.train
    with pytest.raises(AttributeError, match="module 'normfree' has no attribute 'walls'"):
        _ = normfree.walls
