"""Running a study: it goes on after whatever ended it, alone or with others, and mixes nothing."""

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml
from tiny_studies import AXES, SET

from normfree import UsageError, studies
from normfree.runs.lock import Holder, _started
from normfree.training import StopRequests, read_metrics

ONE = {"optim.lr": [0.1, 0.4]}


def rows(folder) -> dict[str, dict[str, str]]:
    with (Path(folder) / "results.csv").open() as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def run(path, out, **options):
    told: list[str] = []
    study = studies.load_study(path, options.pop("overrides", None))
    outcome = studies.run(study, out, say=told.append, **options)
    return outcome, told


def statuses(folder) -> list[str]:
    return [row["status"] for row in rows(folder).values()]


def test_a_study_from_its_start_to_its_end(write, tmp_path, normfree):
    out = tmp_path / "out"
    code, printed, errors = normfree("study", write(), "--out", out)
    assert (code, errors) == (0, "")
    assert statuses(out) == ["finished"] * 4
    assert "4 runs: 8 steps, 64 images" in printed
    assert "[4/4] lr=0.4,net=bare,seed=0: test accuracy" in printed
    folder = out / "lr=0.1,net=bare,seed=0"
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert (recipe["optim"]["lr"], recipe["optim"]["clipping"], recipe["train"]["steps"]) == (0.1, None, 2)
    table = (out / "table.md").read_text()
    top1 = read_metrics(folder)[-2]["top1"]
    assert f"| {100 * top1:.2f} |" in table
    assert (out / "plot.svg").read_text().startswith("<svg")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    code, printed, _ = normfree("study", write(), "--out", out)
    assert (code, "4 of 4 runs are done already" in printed) == (0, True)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_dry_run_writes_nothing(write, tmp_path, normfree):
    code, printed, _ = normfree("study", write(), "--out", tmp_path / "out", "--dry-run", "--train.steps", 3)
    assert code == 0
    assert "lr=0.1,net=bare" in printed
    assert "4 runs: 12 steps" in printed
    assert not (tmp_path / "out").exists()


def test_a_diverging_run_is_a_result(write, tmp_path, normfree):
    axes = {"optim.lr": [0.1, 1.0e10], "optim.clipping": [None]}
    path = write(axes=axes, set=SET | {"optim.warmup_epochs": 0, "train.steps": 4})
    code, printed, _ = normfree("study", path, "--out", "out")
    assert code == 0
    assert statuses("out") == ["finished", "diverged"]
    assert "2 runs: 1 diverged, 1 finished" in printed
    assert "diverged" in Path("out/table.md").read_text()
    assert "resumes" not in printed  # there is nothing left
    before = Path("out/results.csv").read_text()
    _, printed, _ = normfree("study", path, "--out", "out")
    assert "2 of 2 runs are done already" in printed
    assert Path("out/results.csv").read_text() == before


def test_settings_that_do_not_fit_are_refused_for_their_run_alone(write, tmp_path):
    axes = {"model.options.activation": ["relu", "rulu"]}
    outcome, told = run(write(axes=axes), tmp_path / "out")
    assert statuses(outcome.folder) == ["finished", "refused"]
    row = rows(outcome.folder)["activation=rulu,seed=0"]
    assert "did you mean relu" in row["reason"]
    assert any("refused" in line for line in told)
    with pytest.raises(UsageError, match="did you mean relu"):
        run(write(axes={"model.options.activation": ["rulu"]}), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_images_that_are_not_there_are_said_before_anything_is_written(write, tmp_path):
    path = write(images=100, classes=10)
    overrides = {"data.source": "imagefolder:nowhere"}
    planned = studies.plan(studies.load_study(path, overrides | {"train.steps": None, "train.epochs": 1}))
    assert (planned[0].cost.steps, "nowhere" in planned[0].missing) == (12, True)
    with pytest.raises(UsageError, match="nowhere"):
        run(path, tmp_path / "out", overrides=overrides)
    assert not (tmp_path / "out").exists()


def test_a_stop_in_a_run_saves_it_and_the_same_command_goes_on(write, tmp_path):
    class Third(StopRequests):  # asks when the second run has started
        asks = 0

        @property
        def received(self):
            self.asks += 1
            return signal.SIGTERM if self.asks > 12 else None

        @received.setter
        def received(self, value):
            pass

    path = write(axes=ONE, set=SET | {"train.steps": 8})
    outcome, _ = run(path, tmp_path / "out", stop=Third())
    assert outcome.stopped
    assert "finished" not in statuses(outcome.folder)[1:]
    stopped = [int(row["steps"]) for row in rows(outcome.folder).values()]
    assert 0 < sum(stopped) < 16
    again, _ = run(path, tmp_path / "out")
    assert not again.stopped
    assert statuses(again.folder) == ["finished", "finished"]
    whole, _ = run(path, tmp_path / "whole")
    for name in rows(whole.folder):
        a, b = (rows(folder)[name] for folder in (again.folder, whole.folder))
        assert a["last_loss"] == b["last_loss"]  # as if it had not stopped


def test_ctrl_c_says_how_to_go_on(write, tmp_path, normfree, monkeypatch):
    from normfree.studies import start

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt("stopped at step 1; the checkpoint of step 1 is kept")

    monkeypatch.setattr(start, "train", interrupted)
    path = write()
    code, _, errors = normfree("study", path, "--out", "out")
    assert code == 130
    assert errors == (
        "normfree: stopped at step 1 of lr=0.1,net=clipped,seed=0; 0 of 4 runs are done; "
        f"`normfree study {path} --out out` resumes it\n"
    )
    assert statuses("out") == ["waiting"] * 4


KILLED = """
import os, sys
from normfree import studies
def say(line):
    if line.startswith("[2/"):
        os._exit(9)
studies.run(studies.load_study(sys.argv[1]), sys.argv[2], say=say)
"""


def test_a_kill_between_two_runs(write, tmp_path):
    path, out = write(), tmp_path / "out"
    assert subprocess.run([sys.executable, "-c", KILLED, path, str(out)], check=False).returncode == 9
    assert statuses(out) == ["finished"] * 2 + ["waiting"] * 2
    _, told = run(path, out)
    assert told[0] == "2 of 4 runs are done already"
    assert statuses(out) == ["finished"] * 4


@pytest.mark.slow
def test_two_processes_share_one_folder(write, tmp_path):
    path, out = write(seeds=3), tmp_path / "out"
    code = "import sys; from normfree.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "study", path, "--out", str(out)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    texts = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    assert statuses(out) == ["finished"] * 12
    trained = [line for text, _ in texts for line in text.splitlines() if " steps in " in line]
    assert len({line.split("] ")[1].split(":")[0] for line in trained}) == 12
    ends = [line for name in rows(out) for line in read_metrics(out / name) if line["kind"] == "end"]
    assert len(ends) == 12  # each was trained once


def test_a_run_that_another_process_holds_is_left_and_looked_at_again(write, tmp_path):
    path, out = write(axes=ONE), tmp_path / "out"
    folder = out / "lr=0.1,seed=0"
    folder.mkdir(parents=True)
    parent = replace(Holder.here(), pid=os.getppid(), started=_started(os.getppid()))
    (folder / "lock").write_text(json.dumps(asdict(parent)))
    outcome, told = run(path, out)
    assert outcome.elsewhere == ("lr=0.1,seed=0",)
    assert statuses(out) == ["waiting", "finished"]
    assert told[0] == "[1/2] lr=0.1,seed=0: another process is at it"
    (folder / "lock").unlink()
    outcome, _ = run(path, out)
    assert outcome.elsewhere == ()
    assert statuses(out) == ["finished", "finished"]


def test_parts_share_the_work(write, tmp_path):
    path, out = write(), tmp_path / "out"
    run(path, out, part=(2, 3))
    assert statuses(out) == ["waiting", "finished", "waiting", "waiting"]
    run(path, out, part=(1, 3))
    run(path, out, part=(3, 3))
    assert statuses(out) == ["finished"] * 4


@pytest.mark.parametrize(
    "change",
    [
        {"optim.momentum": 0.5},
        {"train.steps": 3},
        pytest.param({"data.flip": True}, marks=pytest.mark.full),
    ],
)
def test_a_study_that_was_changed_is_refused_and_run_anew_when_asked(write, tmp_path, change):
    out = tmp_path / "out"
    run(write(axes=ONE), out)
    table = (out / "table.md").read_text()
    path = write(axes=ONE, set=SET | change)
    ((field, value),) = change.items()
    with pytest.raises(UsageError) as error:
        run(path, out)
    assert f"2 runs in {out} are of other settings than the study's: lr=0.1,seed=0: {field} is " in str(error.value)
    assert "--again runs them anew, --out names another folder" in str(error.value)
    assert (out / "table.md").read_text() == table
    _, told = run(path, out, again=True)
    assert told[0].startswith("lr=0.1,seed=0 is run anew; the earlier run is in ")
    assert (out / "earlier" / "lr=0.1,seed=0-1" / "metrics.jsonl").is_file()
    section, name = field.split(".")
    recipe = yaml.safe_load((out / "lr=0.1,seed=0" / "recipe.yaml").read_text())
    assert recipe[section][name] == value


def test_what_does_not_change_the_result_may_change(write, tmp_path):
    out = tmp_path / "out"
    run(write(axes=ONE), out)
    _, told = run(write(axes=ONE, set=SET | {"train.log_every": 2, "data.workers": 0}), out)
    assert told == ["2 of 2 runs are done already"]


def test_more_seeds_and_values_come_to_those_that_are_there(write, tmp_path):
    out = tmp_path / "out"
    run(write(axes=ONE), out)
    _, told = run(write(axes=AXES | {"optim.lr": [0.1]}), out)
    assert "2 runs in the folder are no cells of the study: lr=0.1,seed=0, lr=0.4,seed=0" in told
    _, told = run(write(axes=ONE, seeds=2), out)
    assert "2 of 4 runs are done already" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs the name of a study in front"),
        (["--out", "x"], "needs the name of a study in front"),
        (["batchsize"], "study 'batchsize' is unknown; did you mean batch_size"),
        (["nowhere.yaml"], "study file nowhere.yaml cannot be read: No such file or directory"),
        (["batch_size", "--seeds", "two"], "--seeds (='two') must be how many"),
        (["batch_size", "--shard", "3"], "--shard (='3') must be which part of how many"),
        (["batch_size", "--optim.clipp", "3"], "option --optim.clipp is unknown; did you mean --optim.clipping"),
        (["batch_size", "--train.batch_size", "3"], "--train.batch_size (=3) is what the axis batch of the study"),
        (["list", "more"], "argument 'more' is unexpected"),
    ],
)
def test_what_cannot_be_done_is_one_line(normfree, arguments, message):
    code, printed, errors = normfree("study", *arguments)
    assert (code, printed) == (2, "")
    assert message in errors
    assert errors.count("\n") == 1


def test_the_list(normfree):
    code, printed, _ = normfree("study", "list")
    assert code == 0
    for name in studies.list_studies():
        (line,) = [line for line in printed.splitlines() if line.split(" ")[0] == name]
        assert line.endswith(studies.study_header(name)[0])


def test_several_processes_of_torchrun_are_refused(write, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="a study runs in one process"):
        run(write(), tmp_path / "out")
