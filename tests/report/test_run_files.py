"""Files of runs that were killed, went on, or are old."""

import json

import pytest
from report.pages import eval_line, train_line

from normfree import UsageError
from normfree.report import read_run
from normfree.report.run_files import curve, value


def test_a_whole_run(write):
    folder = write(
        metrics=[train_line(10), eval_line(10, 0.5), train_line(20), dict(kind="skipped", step=21, reason="nan")],
        clipping=[dict(step=10, layers={"stem": [0.5, 2.0]})],
    )
    (folder / "environment.json").write_text(json.dumps(dict(torch="2.11", processes=2)))
    run = read_run(folder)
    assert ([line["step"] for line in run.train], len(run.evals), len(run.skipped)) == ([10, 20], 1, 1)
    assert run.clipping[0]["layers"] == {"stem": [0.5, 2.0]}
    assert run.environment == {"torch": "2.11", "processes": "2"}
    assert (run.name, run.step, run.notes) == ("my run", 20, [])


def test_a_path_may_be_text(write):
    folder = write(metrics=[train_line(10)])
    assert read_run(str(folder)) == read_run(folder)
    with pytest.raises(UsageError, match="runs/absent is no run folder"):
        read_run("runs/absent")


@pytest.mark.parametrize(
    "rest", ['{"kind": "train", "st', '{"kind": "train", "step": 30}garbage', "[1]", '{"step": "x"}']
)
def test_a_line_that_was_cut_off(write, rest):
    folder = write(metrics=[train_line(10), train_line(20)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(rest)
    run = read_run(folder)
    assert [line["step"] for line in run.train] == [10, 20]
    assert run.notes == ["metrics.jsonl: line 3 cannot be read and is left out"]


def test_bytes_that_are_no_text(write):
    folder = write(metrics=[train_line(10)])
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\xfe\x00\n")
    assert len(read_run(folder).train) == 1


def test_what_was_written_again_replaces_what_was_before(write):
    """A run that went on from step 20 after it was killed at 41."""
    lines = [train_line(step, seconds_left=1.0) for step in (10, 20, 30, 40)]
    folder = write(metrics=[*lines, *(train_line(step, seconds_left=2.0) for step in (30, 40, 50))])
    run = read_run(folder)
    assert [line["step"] for line in run.train] == [10, 20, 30, 40, 50]
    assert [line["seconds_left"] for line in run.train] == [1, 1, 2, 2, 2]


def test_nothing_yet(folder):
    run = read_run(folder)
    assert (run.train, run.evals, run.step, run.written) == ([], [], 0, None)
    assert run.notes == ["metrics.jsonl is not there"]
    (folder / "metrics.jsonl").touch()
    assert read_run(folder).notes == []


@pytest.mark.parametrize("content", ["{", "[]", "3", '"x"'])
def test_a_damaged_environment(folder, content):
    (folder / "environment.json").write_text(content)
    run = read_run(folder)
    assert run.environment == {}
    assert "environment.json is damaged" in run.notes


def test_no_run(tmp_path):
    with pytest.raises(UsageError, match=r"has neither recipe.yaml nor metrics.jsonl"):
        read_run(tmp_path)


def test_numbers_of_lines():
    line = dict(a=1, b=True, c="2", d=None, e=float("nan"), f=10**400, g=-(10**400), step=3)
    assert [value(line, name) for name in "abcdx"] == [1.0, None, None, None, None]
    assert value(line, "e") != value(line, "e")
    assert (value(line, "f"), value(line, "g")) == (float("inf"), -float("inf"))
    assert curve([line, dict(step=4)], "a") == [(3, 1.0)]
