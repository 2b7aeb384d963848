"""`normfree find-lr`: the learning rate range test of a recipe."""

import csv
import importlib
import math
import signal

import pytest
from tiny_runs import FLAGS

from normfree import RunFailed, UsageError
from normfree.errors import NotFinite
from normfree.runs.find_lr import FEWEST, find_lr
from normfree.training import StepResult, TrainStep, read_metrics
from normfree.training.lr_range import BELOW, SPAN

SMALL = {
    "train.device": "cpu",
    "model.options.depths": [1, 1, 1],
    "model.options.widths": [16, 16, 32],
}


@pytest.fixture
def scripted(monkeypatch):
    """Steps that train nothing: the loss is a function of the learning rate."""

    def use(loss):
        def step(self, batch, lr, images=None):
            return StepResult(loss(lr), 0, len(batch), 0.25)

        monkeypatch.setattr(TrainStep, "__call__", step)

    return use


def valley(lr):
    """Lowest at 0.5."""
    return 1 + abs(math.log(lr / 0.5))


def table(folder):
    with (folder / "find_lr.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_command(normfree, scripted, tmp_path):
    scripted(valley)
    out = tmp_path / "found"
    result = normfree("find-lr", *FLAGS, "--lr", "0.3", "--batch-size", "8", "--out", out)
    assert result.code == 0
    lines = result.out.splitlines()
    rows = table(out)
    assert len(rows) == FEWEST
    assert [float(row["lr"]) for row in (rows[0], rows[-1])] == pytest.approx([0.3 * SPAN[0], 0.3 * SPAN[1]])
    lowest = min(rows, key=lambda row: float(row["smoothed"]))
    rate = f"{float(lowest['lr']) / BELOW:.2g}"
    assert lines[0] == f"suggestion: --lr {rate}"
    assert "the recipe's own rate is 0.3" in lines[1]
    assert lines[-1].endswith(f"--batch-size 8 --lr {rate}")
    assert "--out" not in lines[-1]
    assert {row["clipped"] for row in rows} == {"0.25"}
    assert (out / "find_lr.png").read_bytes().startswith(b"\x89PNG")
    logged = read_metrics(out)
    assert [line["loss"] for line in logged[:-1]] == pytest.approx([float(row["loss"]) for row in rows], rel=1e-5)
    assert (logged[-1]["kind"], logged[-1]["state"]) == ("end", "finished")
    assert "exists already" in normfree("train", *FLAGS, "--out", out).error  # it is no run to start into


def test_its_steps_are_those_of_training(tmp_path):
    found = []

    def by_hand(*arguments, **options):
        trainer, _ = prepare(*arguments, **options)
        trainer.model.train()
        trainer.task.train.set_epoch(0)
        for batch, lr in zip(trainer.task.train, (0.1, 0.2, 0.4), strict=False):
            found.append(trainer.step(batch.to(trainer.device, trainer.memory_format), lr).loss)

    prepare = importlib.import_module("normfree.runs.prepare").prepare
    recipe = importlib.import_module("normfree.recipes").load_recipe("digits", SMALL)
    with importlib.import_module("normfree.runs.lock").RunLock() as lock:
        by_hand(recipe, "digits", str(tmp_path / "hand"), lock=lock, progress=False)
    with pytest.raises(RunFailed):  # three steps find no rate
        find_lr("digits", SMALL, out=tmp_path / "found", rates=(0.1, 0.4), steps=3, progress=False)
    assert [float(row["loss"]) for row in table(tmp_path / "found")] == pytest.approx(found, rel=1e-5)  # of 6 digits


def test_a_rate_for_a_reference_batch_is_said_as_such(scripted, tmp_path, normfree):
    scripted(valley)
    recipe = {**SMALL, "train.batch_size": 8, "optim.lr_reference_batch": 32}
    found = find_lr("digits", recipe, out=tmp_path / "found", rates=(0.01, 10.0), steps=50, progress=False)
    assert (found.own, found.setting) == pytest.approx((0.25, 4 * found.lr))


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (lambda lr: 2.3, "the loss is flat at rates from 0.001 to 100"),
        (lambda lr: 1e9 * lr, "the loss diverges at rate"),
        (lambda lr: 1 / lr, "the loss still falls at the highest of the rates"),
    ],
)
def test_no_rate_is_one_line_and_the_table_is_kept(normfree, scripted, tmp_path, loss, told):
    scripted(loss)
    result = normfree("find-lr", *FLAGS, "--steps", "20", "--out", tmp_path / "found")
    assert result.code == 1
    assert "is not drawn" not in result.err
    error = result.err.splitlines()[-1]
    assert error.startswith(f"normfree: {told}")
    assert "--rates A..B" in error
    assert table(tmp_path / "found")
    assert read_metrics(tmp_path / "found")[-1]["state"] == "failed"


def test_a_loss_that_is_not_finite_ends_it(scripted, tmp_path):
    def lost(lr):
        if lr > 10:
            raise NotFinite("the loss is nan")
        return valley(lr)

    scripted(lost)
    found = find_lr("digits", SMALL, out=tmp_path / "found", steps=20, progress=False)
    assert found.rows[-1].lr <= 10
    assert "the loss is nan" in read_metrics(found.folder)[-1]["reason"]


def test_ctrl_c_keeps_what_was_measured(normfree, scripted, tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    seen = []

    def interrupted(lr):
        seen.append(lr)
        if len(seen) == 5:
            signal.raise_signal(signal.SIGINT)
        return valley(lr)

    scripted(interrupted)
    try:
        result = normfree("find-lr", *FLAGS, "--steps", "50", "--out", tmp_path / "found")
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.code == 130
    error = result.err.splitlines()[-1].removeprefix("normfree: ")
    assert error == f"interrupted after 5 of 50 steps; what was measured is in {tmp_path / 'found/find_lr.csv'}"
    assert len(table(tmp_path / "found")) == 5


def test_what_is_refused(normfree, tmp_path, monkeypatch):
    for arguments, told in (
        (["--rates", "3"], "--rates (='3') must be two rising learning rates above 0, such as 0.001..10"),
        (["--rates", "3..1"], "--rates (='3..1') must be two rising"),
        (["--steps", "1"], "steps (=1) must be at least 2"),
        (["--private.epsilon", "8"], "find-lr looks at training images without privacy"),
        (["--resume"], "option --resume is unknown"),
    ):
        result = normfree("find-lr", *FLAGS, *arguments, "--out", tmp_path / "none")
        assert result.code == 2
        assert result.error.startswith(told)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"^find-lr runs in one process"):
        find_lr("digits")
    assert not (tmp_path / "none").exists()
