"""`normfree train`: what it prints, while it trains and at its end."""

import shlex
from types import SimpleNamespace

from tiny_runs import FLAGS, evaluations

from normfree.cli.train import report
from normfree.recipes import load_recipe
from normfree.runs.pictures import draw_curves
from normfree.training import Summary

SHORT = [*FLAGS, "--train.steps", "2"]


def test_what_it_says(normfree, tmp_path):
    out = tmp_path / "run"
    result = normfree("train", *SHORT, "--out", out)
    assert result.code == 0
    last = evaluations(out)[-1]
    assert f"test accuracy {last['ema_top1']:.2%}" in result.out
    for part in ("recipe.yaml", "metrics.jsonl", "curves.png", "checkpoints/last", "checkpoints/best"):
        assert str(out / part) in result.out
    assert f"normfree eval {out}" in result.out
    assert f"normfree predict {out} {out / 'examples'}" in result.out
    (line,) = result.err.splitlines()  # quiet: no bar
    assert "1437 training and 360 test images of 10 classes" in line


def test_a_picture_that_cannot_be_drawn_is_a_warning(tmp_path, capsys):
    with (tmp_path / "metrics.jsonl").open("w") as file:
        file.write('{"kind": "train", "step": 5, "loss": "x", "lr": [1]}\n')
    last = dict(top1=0.5, epoch=1)
    summary = Summary(last, last, steps=5, train_seconds=1.0, seconds=1.0, unreadable=[])
    (tmp_path / "checkpoints" / "last").mkdir(parents=True)
    task = SimpleNamespace(score="top1", score_format=".1%", score_label="top-1", score_note=lambda score: None)
    checkpoints = SimpleNamespace(folder=tmp_path / "checkpoints")
    trainer = SimpleNamespace(task=task, run=SimpleNamespace(checkpoints=checkpoints), ledger=None)
    for spoil in (lambda: None, (tmp_path / "curves.png").mkdir):
        spoil()
        draw_curves(tmp_path, task.score)
        lines = report(summary, tmp_path, trainer)
        assert lines[0].startswith("top-1 50.0%")
        assert not any("curves.png" in line for line in lines)
        warning = capsys.readouterr().err
        assert warning.startswith(f"warning: {tmp_path / 'curves.png'} is not drawn: ")
        assert warning.count("\n") == 1
        (tmp_path / "metrics.jsonl").write_text("")


def test_the_next_commands_can_be_pasted(normfree, tmp_path):
    out = tmp_path / "my run"
    result = normfree("train", *SHORT, "--out", out)
    assert result.code == 0
    commands = [shlex.split(line.removeprefix("next:")) for line in result.out.splitlines()[-3:]]
    assert commands == [
        ["normfree", "eval", str(out)],
        ["normfree", "report", str(out)],
        ["normfree", "predict", str(out), str(out / "examples")],
    ]


def test_the_progress_bar_shows_the_numbers(normfree, tmp_path):
    result = normfree("train", *[f for f in SHORT if f != "--quiet"], "--out", tmp_path / "run")
    assert result.code == 0
    for part in ("2/2", "loss ", "acc ", "images/s", "clipped ", "%"):
        assert part in result.err
    assert "loss " not in result.out


def test_micro_batches_by_their_short_options(normfree, tmp_path):
    assert normfree("train", *SHORT, "--train.steps", "2", "--micro-batch", "auto", "--out", tmp_path / "run").code == 0
    assert load_recipe(str(tmp_path / "run" / "recipe.yaml")).train.micro_batch == "auto"
