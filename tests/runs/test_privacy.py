"""`normfree train --private.epsilon`: the budget is printed, stored, and kept by whatever comes later."""

import json
import re
import shutil
import sys

import image_files
import pytest
import torch
from checkpoint_files import rewrite_json
from tiny_runs import FLAGS, evaluations

from normfree.cli import main
from normfree.private import epsilon_of
from normfree.recipes import load_recipe
from normfree.training import find_checkpoint, read_checkpoint
from normfree.training.checkpoints import read_state

PRIVATE = ["--private.epsilon", "8", "--private.accountant", "rdp", "--optim.warmup_epochs", "0"]
TINY = ["train", *FLAGS, *PRIVATE, "--train.log_every", "1"]
RATE = 64 / 1437  # of the digits


def settings(run):
    return load_recipe(str(run / "recipe.yaml")).private


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("private") / "run"
    assert main([str(a) for a in (*TINY, "--train.steps", 4, "--private.max_norm", 0.7, "--out", folder)]) == 0
    return folder


def test_the_budget_is_printed_stored_and_nearly_used_up(normfree, tmp_path):
    result = normfree(*TINY, "--train.steps", 4, "--out", tmp_path / "run")
    noise = settings(tmp_path / "run").noise_multiplier
    first = f"privacy: epsilon 8 at delta 1e-05; noise multiplier {noise:.4g}, gradients of at most 1, each image in a "
    assert f"{first}step with probability {RATE:.4g} (rdp accountant)" in result.err.splitlines()
    assert "noise and draws follow from train.seed, which the weights carry" in result.err
    epsilon = epsilon_of([[noise, RATE, 4]], 1e-5, "rdp")
    assert 7.98 <= epsilon <= 8
    assert f"privacy: epsilon {epsilon:.4g} of 8 at delta 1e-05 is spent in 4 steps" in result.out
    state = read_state(find_checkpoint(tmp_path / "run" / "checkpoints")[0])
    assert state["spent"] == [[noise, RATE, 4]]
    assert evaluations(tmp_path / "run")[-1]["epsilon"] == epsilon


def test_the_recipe_of_a_run_repeats_it(normfree, run, tmp_path):
    assert normfree("train", "--quiet", "--recipe", run / "recipe.yaml", "--out", tmp_path / "again").code == 0
    for kind in ("weights", "ema"):
        one, other = (read_checkpoint(folder, "last", kind)[0] for folder in (run, tmp_path / "again"))
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert settings(tmp_path / "again") == settings(run)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--train.steps", 5], "5 steps would spend epsilon "),
        (["--train.epochs", 3], "66 steps would spend epsilon "),
        (["--private.epsilon", 9], "--private.epsilon would make it another run: private.epsilon is 8.0 there, not 9"),
        (["--private.noise_multiplier", 0.1], "--private.noise_multiplier would make it another run"),
        (["--private.delta", 1e-4], "--private.delta would make it another run"),
        (["--private.max_norm", 2], "--private.max_norm would make it another run"),
        (["--private.augmentations", 2], "--private.augmentations would make it another run"),
        (["--private.secure", "true"], "--private.secure would make it another run"),
        (["--private.epsilon", "null"], "--private.epsilon would make it another run"),
        (["--train.batch_size", 128], "--train.batch_size would make it another run"),
        (["--train.seed", 1], "--train.seed would make it another run"),
    ],
)
def test_a_resumed_run_cannot_exceed_its_budget(normfree, run, options, told):
    result = normfree("train", "--resume", run, "--quiet", *options)
    assert result.code == 2
    assert told in result.err
    assert read_state(find_checkpoint(run / "checkpoints")[0])["step"] == 4


def test_a_recipe_that_was_edited_is_refused(normfree, run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    text = (copy / "recipe.yaml").read_text()
    (copy / "recipe.yaml").write_text(re.sub(r"noise_multiplier: .*", "noise_multiplier: 0.01", text))
    result = normfree("train", "--resume", copy, "--quiet")
    assert result.code == 2
    assert "private.noise_multiplier is 0.01 instead of" in result.err


def test_a_checkpoint_that_does_not_account_for_its_steps_is_refused(normfree, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    checkpoint = find_checkpoint(tmp_path / "run" / "checkpoints")[0]
    rewrite_json(checkpoint, {}, dict(spent=None))
    result = normfree("train", "--resume", tmp_path / "run", "--quiet")
    assert result.code == 2
    assert "has done 4 steps, and says the noise of 0 of them" in result.err


def test_a_run_on_images_that_became_fewer_is_accounted_for(normfree, tmp_path):
    """Each of them is drawn more often."""
    photos = image_files.folder(tmp_path / "photos", train=20)
    options = ["--data", f"imagefolder:{photos}", "--recipe", "digits", "--train.batch_size", 4, "--train.steps", 8]
    options += ["--data.image_size", 8, "--data.test_size", 8]
    first = normfree(*TINY, *options, "--train.save_every", 2, "--train.eval_every", 100, "--out", tmp_path / "run")
    assert first.code == 0, first.err
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.rmtree(checkpoints / "step-00000008")
    for name in ("last", "best"):
        (checkpoints / name).unlink()
    for number in range(6):
        (photos / "train" / "cat" / f"{number}.png").unlink()
    result = normfree("train", "--resume", tmp_path / "run", "--quiet")
    assert result.code == 2
    assert "8 steps would spend epsilon " in result.err.splitlines()[-1]


def test_one_command_starts_and_goes_on(normfree, tmp_path):
    command = [*TINY, "--train.steps", 3, "--out", tmp_path / "run", "--resume"]
    assert normfree(*command).code == 0
    again = normfree(*command)
    assert again.code == 0, again.err
    assert "of which 7.99" in again.err
    assert read_state(find_checkpoint(tmp_path / "run" / "checkpoints")[0])["spent"][0][2] == 3


def test_secure_draws_and_noise_are_others_each_time(normfree, tmp_path):
    for name in ("a", "b"):
        result = normfree(*TINY, "--private.secure", "true", "--train.steps", 2, "--out", tmp_path / name)
        assert result.code == 0
        assert "train.seed" not in result.err
    one, other = (read_checkpoint(tmp_path / name, "last", "weights")[0] for name in ("a", "b"))
    assert not any(torch.equal(tensor, other[name]) for name, tensor in one.items() if tensor.ndim == 4)
    seen = [
        [row[2] for row in read_state(find_checkpoint(tmp_path / name / "checkpoints")[0])["recent"]] for name in "ab"
    ]
    assert seen[0] != seen[1]


def test_views_and_given_noise(normfree, tmp_path):
    options = ["--private.augmentations", 3, "--private.noise_multiplier", 5, "--train.steps", 2]
    result = normfree(*TINY, *options, "--train.micro_batch", 32, "--out", tmp_path / "run")
    assert result.code == 0
    assert "noise multiplier 5," in result.err
    assert settings(tmp_path / "run").noise_multiplier == 5.0
    result = normfree(*TINY, "--private.noise_multiplier", 0.2, "--out", tmp_path / "other")
    assert result.code == 2
    assert "more than private.epsilon (=8.0) allows" in result.err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--data.mixup", 0.2], "data.mixup (=0.2) is not for private training: an image would be in the gradients"),
        (["--data.cutmix", 1], "data.cutmix (=1.0) is not for private training"),
        (["--data.sampler", "balanced"], "data.sampler (=balanced) is not for private training"),
        (["--task.class_weights", "auto"], "task.class_weights (=auto) is not for private training: it is computed"),
        (["--optim.sam_rho", 0.05], "optim.sam_rho (=0.05) is not for private training"),
        (["--train.compile", "true"], "train.compile (=True) is not for private training"),
        (["--train.parallel", "fsdp"], "train.parallel (=fsdp) is not for private training"),
        (["--train.precision", "float16"], "train.precision (=float16) is not for private training"),
        (["--model.name", "bn_resnet50"], "stages.0.0.bn0 (BatchNorm2d) mixes examples"),
        (["--private.delta", 2], "private.delta (=2.0) must be above 0 and below 1"),
        (["--private.accountant", "gdp"], "private.accountant (='gdp') must be one of prv, rdp"),
    ],
)
def test_what_contradicts_it_is_refused_before_anything_is_written(normfree, tmp_path, options, told):
    result = normfree(*TINY, *options, "--out", tmp_path / "run")
    assert result.code == 2
    assert told in result.error
    assert not (tmp_path / "run").exists()


def test_whitening_and_detection_are_refused(normfree, tmp_path):
    cifar = ["--model.name", "nf_cifarnet", "--data.image_size", 16, "--data.test_size", 16, "--train.steps", 1]
    options = ["train", "--quiet", *PRIVATE, *cifar, "--model.options.widths", "[8, 8, 8]"]
    result = normfree(*options, "--out", tmp_path / "a")
    assert (result.code, result.error.split(":")[0]) == (
        2,
        "stem.conv (PatchWhitening2d) is not for private training",
    )
    assert normfree(*options, "--model.options.stem", "3x3", "--out", tmp_path / "b").code == 0
    result = normfree("train", "--quiet", "--recipe", "demo_detection", *PRIVATE, "--out", tmp_path / "c")
    assert "task.name (=detection) is not for private training" in result.error


def test_a_delta_that_protects_nobody_is_said(normfree, tmp_path):
    result = normfree(*TINY, "--train.steps", 1, "--private.delta", 1e-3, "--out", tmp_path / "run")
    assert "private.delta (=0.001) should be well below 1 over the 1,437 training images" in result.err


def test_opacus_is_named_where_it_is_missing(normfree, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    result = normfree(*TINY, "--out", tmp_path / "run")
    assert result.code == 2
    assert result.error.endswith('pip install "normfree[private]"')


def test_a_run_without_privacy_says_nothing_of_it(trained):
    assert settings(trained).epsilon is None
    assert all("epsilon" not in line for line in evaluations(trained))
    assert "spent" not in json.dumps(evaluations(trained))


def test_a_run_from_before_goes_on_without_privacy(normfree, tmp_path):
    """Whose recipe has no such section, and whose state no such list."""
    options = ["--train.steps", 2, "--optim.warmup_epochs", 0, "--train.log_every", 1]
    assert normfree("train", *FLAGS, *options, "--out", tmp_path / "run").code == 0
    path = tmp_path / "run" / "recipe.yaml"
    text = path.read_text()
    path.write_text(text[: text.index("private:")])
    checkpoint = find_checkpoint(tmp_path / "run" / "checkpoints")[0]
    rewrite_json(checkpoint, {}, dict(spent=None))
    assert normfree("train", "--resume", tmp_path / "run", "--quiet", "--train.steps", 3).code == 0
