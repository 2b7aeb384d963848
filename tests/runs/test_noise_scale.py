"""`normfree noise-scale`: the gradient noise scale of a run, on its training images."""

import importlib
import json

import pytest
import torch
from tiny_runs import FLAGS, OPTIONS

import normfree as package
from normfree import RunFailed, UsageError
from normfree.cli import main
from normfree.private import Spread
from normfree.runs.noise_scale import noise_scale
from normfree.training import find_checkpoint

QUIET = dict(say=lambda line: None, device="cpu")


def by_hand(run, images):
    """tr(Sigma) and |G|^2 of the raw weights on the images of one epoch, one backward pass for each image."""
    trained = package.runs.load(run, weights="raw")
    recipe = trained.recipe
    recipe.train.batch_size, recipe.train.across_epochs = 10, True
    task = trained.task.from_recipe(recipe, package.data.open_source("digits", 1))
    task.train.set_epoch(0)
    model, rows = trained.model.train(), []
    for batch in task.train:
        for n in range(len(batch)):
            model.zero_grad()
            one = batch.part(slice(n, n + 1))
            task.loss(model(*one.inputs), one).backward()
            rows.append(torch.cat([p.grad.double().flatten() for p in model.parameters()]))
            if len(rows) == images:
                rows = torch.stack(rows)
                trace = rows.var(0).sum().item()
                return trace, rows.mean(0).square().sum().item() - trace / images
    raise AssertionError("too few images")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run without dropout and stochastic depth, whose gradients are the same in each pass."""
    folder = tmp_path_factory.mktemp("noise") / "run"
    options = ["--train.steps", "30", "--optim.warmup_epochs", "1", "--model.drop_rate", "0"]
    assert main(["train", *FLAGS, *options, "--model.stochdepth_rate", "0", "--out", str(folder)]) == 0
    return folder


def test_it_is_that_of_the_images_one_after_the_other(plain):
    found = noise_scale(plain, images=60, batch_size=7, **QUIET)
    trace, square = by_hand(plain, 60)
    assert found.noise.examples == 60
    assert found.noise.whole.trace == pytest.approx(trace, rel=1e-4)  # float32
    assert found.noise.whole.square == pytest.approx(square, rel=1e-3)
    assert found.batch_size == package.recipes.load_recipe(str(plain / "recipe.yaml")).train.batch_size


def test_parts_are_stages_and_the_layers_around_them(plain):
    found = noise_scale(plain, images=20, **QUIET)
    assert list(found.parts) == ["stem.conv", *(f"stages.{n}" for n in range(len(OPTIONS["depths"]))), "head.fc"]
    assert sum(part.trace for part in found.parts.values()) == pytest.approx(found.noise.whole.trace)


def test_other_weights_seeds_and_files(trained):
    raw = noise_scale(trained, images=20, **QUIET)
    assert raw == noise_scale(trained, images=20, weights="raw", checkpoint="last", **QUIET)
    for other in (dict(weights="ema"), dict(seed=1)):
        assert raw.noise != noise_scale(trained, images=20, **other, **QUIET).noise
    file = find_checkpoint(trained / "checkpoints")[0] / "weights.safetensors"
    assert noise_scale(file, images=20, **QUIET).noise == raw.noise


def test_more_images_than_there_are_come_again(trained):
    assert noise_scale(trained, images=1500, batch_size=500, **QUIET).noise.examples == 1500


def test_the_command(normfree, plain):
    result = normfree("noise-scale", plain, "--images", 1437, "--device", "cpu", "--json")
    told = json.loads(result.out)
    found = noise_scale(plain, images=1437, **QUIET)
    assert told["noise_scale"] == found.noise.scale
    assert told["images"] == 1437
    assert told["parts"].keys() == found.parts.keys()
    result = normfree("noise-scale", plain, "--images", 1437, "--device", "cpu")
    assert result.code == 0
    assert f"noise scale {found.noise.scale:,.0f} images (the run's batch: {found.batch_size:,})" in result.out
    assert "twice the batch would take about" in result.out


def test_too_few_images_are_said_to_tell_nothing(normfree, plain, monkeypatch):
    module = importlib.import_module("normfree.runs.noise_scale")
    for square, words in ((0.01, "about 500, which 20 images do not tell"), (-1.0, "no mean gradient is seen")):
        noise = package.private.NoiseScale(20, Spread(5.0, square), {"head.fc.bias": Spread(5.0, square)})
        monkeypatch.setattr(module, "of_batches", lambda model, batches, noise=noise: noise)
        result = normfree("noise-scale", plain, "--images", 20, "--device", "cpu")
        assert words in result.out
    assert json.loads(normfree("noise-scale", plain, "--json", "--device", "cpu").out)["noise_scale"] is None


def test_what_is_refused(normfree, trained, tmp_path):
    for arguments, told in (
        ([tmp_path / "nowhere"], "does not exist"),
        (["nf_resnet50"], "nf_resnet50 is a model's name, not a trained network"),
        ([trained, "--images", 1], "--images (=1) must be at least 2, and --batch-size (=50) at least 1"),
    ):
        result = normfree("noise-scale", *arguments)
        assert result.code == 2
        assert told in result.error
    with pytest.raises(UsageError, match=r"^images \(=1\) must be at least 2"):
        noise_scale(trained, images=1)


def test_a_network_with_batch_norm_is_refused(normfree, tmp_path):
    options = ["--model.name", "bn_resnet50", "--model.options.stem", "3x3", "--train.steps", "1"]
    assert main(["train", *FLAGS, *options, "--out", str(tmp_path / "bn")]) == 0
    result = normfree("noise-scale", tmp_path / "bn")
    assert result.code == 2
    assert "(BatchNorm2d) mixes examples" in result.error


def test_images_that_cannot_be_read(trained, monkeypatch):
    def broken(self, index):
        raise package.data.UnreadableImage("broken")

    monkeypatch.setattr(package.data.sources.ArraySplit, "image", broken)
    with pytest.raises(RunFailed, match=r"^none of the training images can be read"):
        noise_scale(trained, images=20, **QUIET)
