"""`normfree train --spp-every`: what it records, and that it changes nothing."""

import json
import signal

import pytest
import torch
from PIL import Image
from tiny_runs import FLAGS

from normfree.spp import read_film
from normfree.training import read_checkpoint
from normfree.training.step import TrainStep

RUN = [*FLAGS, "--train.steps", "5", "--optim.warmup_epochs", "0"]


def tensors(folder) -> dict[str, torch.Tensor]:
    kinds = ("weights", "ema")
    return {f"{kind}/{k}": v for kind in kinds for k, v in read_checkpoint(folder, "last", kind)[0].items()}


def numbers(folder) -> list[dict]:
    """Lines of the metrics without times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith("_per_s")} for line in lines]


def recorded(folder) -> list[int]:
    with Image.open(folder / "spp.png") as picture:
        picture.load()
    return [frame.step for frame in read_film(folder / "spp.jsonl")]


@pytest.mark.parametrize(("every", "steps"), [(2, [0, 2, 4, 5]), (5, [0, 5]), (100, [0, 5])])
def test_steps(normfree, tmp_path, every, steps):
    result = normfree("train", *RUN, "--spp-every", every, "--out", tmp_path / "run")
    assert result.code == 0
    assert recorded(tmp_path / "run") == steps
    assert str(tmp_path / "run" / "spp.png") in result.out
    assert str(tmp_path / "run" / "spp.jsonl") in result.out


def test_the_recipe_keeps_it(normfree, tmp_path):
    assert normfree("train", *RUN, "--train.spp_every", 3, "--out", tmp_path / "a").code == 0
    recipe = tmp_path / "a" / "recipe.yaml"
    assert "spp_every: 3" in recipe.read_text()
    assert normfree("train", "--quiet", "--recipe", recipe, "--out", tmp_path / "b").code == 0
    assert recorded(tmp_path / "a") == recorded(tmp_path / "b") == [0, 3, 5]
    assert (tmp_path / "a" / "spp.jsonl").read_bytes() == (tmp_path / "b" / "spp.jsonl").read_bytes()


def test_training_is_bit_for_bit_the_same(normfree, tmp_path):
    # dropout and stochastic depth draw random numbers in every step
    regular = [
        "--model.drop_rate",
        "0.3",
        "--model.stochdepth_rate",
        "0.3",
        "--optim.lr",
        "0.5",
        "--data.crop",
        "shift",
    ]
    for name, every in (("with", ["--spp-every", "1"]), ("without", [])):
        assert normfree("train", *RUN, *regular, *every, "--out", tmp_path / name).code == 0
    a, b = tensors(tmp_path / "with"), tensors(tmp_path / "without")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert numbers(tmp_path / "with") == numbers(tmp_path / "without")
    assert not list((tmp_path / "without").glob("spp*"))


def test_the_film_sees_the_weights_change(normfree, tmp_path):
    assert normfree("train", *RUN, "--spp-every", "5", "--optim.lr", "1", "--out", tmp_path / "run").code == 0
    first, last = read_film(tmp_path / "run" / "spp.jsonl")
    assert first.spp.avg_var != last.spp.avg_var
    assert first.spectra != last.spectra
    assert [row.added_var for row in first.spp.rows] == [0.0] * 3  # skip gains start at 0
    assert all(row.added_var > 0 for row in last.spp.rows)


def test_a_training_that_fails_leaves_its_strip(normfree, tmp_path):
    diverging = ["--optim.lr", "1e12", "--optim.clipping", "null"]
    result = normfree("train", *RUN, *diverging, "--spp-every", "1", "--out", tmp_path / "run")
    assert result.code == 1
    assert "training stopped in step" in result.err.splitlines()[-1]
    assert "Traceback" not in result.err
    steps = recorded(tmp_path / "run")
    assert steps[0] == 0
    assert steps == list(range(len(steps)))


def test_an_interrupted_training_leaves_its_strip(normfree, tmp_path, monkeypatch):
    step, done = TrainStep.__call__, []

    def third(self, *args, **kwargs):
        done.append(1)
        if len(done) == 3:
            signal.raise_signal(signal.SIGINT)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(TrainStep, "__call__", third)
    result = normfree("train", *RUN, "--spp-every", "2", "--out", tmp_path / "run")
    assert result.code == 130
    assert recorded(tmp_path / "run") == [0, 2]


@pytest.mark.parametrize("every", ["0", "-1", "1.5", "often"])
def test_no_number_of_steps(normfree, tmp_path, every):
    result = normfree("train", *RUN, f"--spp-every={every}", "--out", tmp_path / "run")
    assert result.code == 2
    assert every in result.error
    assert not (tmp_path / "run").exists()


def test_without_it_nothing_is_recorded(normfree, trained):
    assert not list(trained.glob("spp*"))
