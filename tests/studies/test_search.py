"""`normfree search`: trials are runs; what is drawn, pruned, cut off and repeated."""

import csv
import datetime
import enum
import shlex
import signal
import sys

import pytest
from tiny_studies import SET

from normfree import UsageError
from normfree.cli.train_options import parse
from normfree.recipes import load_recipe
from normfree.studies.search import best_trial, load_search, repeats, run_search
from normfree.training import StopRequests, read_metrics

TINY = {**SET, "optim.warmup_epochs": 0, "train.steps": 4, "train.eval_every": 0.01}  # an evaluation every second step
State = enum.Enum("State", ["RUNNING", "COMPLETE", "PRUNED", "FAIL"])


class Sampler:
    def __init__(self, seed=0):
        self.seed = seed


class Trial:
    """As Optuna's, with values that the test gives."""

    def __init__(self, number, values, on_report):
        self.number, self.values, self.on_report = number, values, on_report
        self.state, self.value, self.user_attrs, self.reports = State.RUNNING, None, {}, {}
        self.datetime_start = datetime.datetime.now()

    def suggest_float(self, name, low, high, log=False):
        assert low <= self.values[name] <= high
        return self.values[name]

    def set_user_attr(self, name, value):
        self.user_attrs[name] = value

    def report(self, value, step):
        self.reports[step] = value

    def should_prune(self):
        return self.on_report(self)


class Study:
    """As Optuna's, in memory."""

    def __init__(self, *rates, on_report=lambda trial: False):
        self.values, self.on_report = [{"optim.lr": rate} for rate in rates], on_report
        self.trials, self.user_attrs, self.sampler = [], {}, Sampler()

    def ask(self):
        number = len(self.trials)
        self.trials.append(Trial(number, self.values[number], self.on_report))
        return self.trials[-1]

    def tell(self, number, value, state):
        assert self.trials[number].state == State.RUNNING
        assert (value is not None) == (state == State.COMPLETE)
        self.trials[number].value, self.trials[number].state = value, state

    def get_trials(self, deepcopy):
        return self.trials

    def set_user_attr(self, name, value):
        self.user_attrs[name] = value


def search_of(**options):
    return load_search("digits", {**TINY, "optim.lr": "0.01..1", **options})


def states(study):
    return [trial.state.name for trial in study.trials]


def test_trials_are_runs_and_more_can_follow(tmp_path):
    study, told = Study(0.1, 0.4, 0.02), []
    search = search_of()
    tried = run_search(search, tmp_path, 2, study=study, say=told.append)
    assert [one.state for one in tried] == ["finished", "finished"]
    assert [line.partition(":")[0] for line in told] == ["trial-0000", "trial-0001"]
    for one, rate in zip(tried, (0.1, 0.4), strict=True):
        assert load_recipe(str(one.folder / "recipe.yaml")).optim.lr == rate
        assert [line["top1"] for line in read_metrics(one.folder) if line["kind"] == "eval"][-1] == one.score
    best = best_trial(tried)
    assert best.score == max(one.score for one in tried)
    assert study.trials[0].reports == {500: pytest.approx(read_score(tried[0].folder, 2))}
    before = [one.folder.stat().st_mtime_ns for one in tried]
    tried = run_search(search, tmp_path, 3, study=study)
    assert len(tried) == 3
    assert [one.folder.stat().st_mtime_ns for one in tried[:2]] == before
    with (tmp_path / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["optim.lr"]) for row in rows] == [0.1, 0.4, 0.02]


def read_score(folder, step):
    return next(line["top1"] for line in read_metrics(folder) if line["kind"] == "eval" and line["step"] == step)


def test_the_command_that_repeats_a_trial(tmp_path):
    search = search_of()
    one = run_search(search, tmp_path, 1, study=Study(0.1))[0]
    words = shlex.split(repeats(search, one))
    assert words[:4] == ["normfree", "train", "--recipe", "digits"]
    _, overrides = parse([*words[4:]])
    started = load_recipe("digits", overrides)
    run = load_recipe(str(one.folder / "recipe.yaml"))
    assert (started.optim, started.train, started.model) == (run.optim, run.train, run.model)


def test_a_pruned_trial_ends_early_and_the_next_one_begins(tmp_path):
    study = Study(0.1, 0.4, on_report=lambda trial: trial.number == 0)
    stop = StopRequests()
    tried = run_search(search_of(), tmp_path, 2, study=study, stop=stop)
    assert [one.state for one in tried] == ["pruned", "finished"]
    assert read_metrics(tried[0].folder)[-1]["step"] == 2
    assert stop.received is None
    study = Study(0.1, on_report=lambda trial: True)
    whole = load_search("digits", {**TINY, "optim.lr": "0.01..1"}, prunes=False)
    assert run_search(whole, tmp_path / "whole", 1, study=study)[0].state == "finished"


def test_a_trial_that_was_cut_off_goes_on(tmp_path):
    stop = StopRequests()

    def interrupt(trial):
        stop.received = signal.SIGTERM
        return False

    study = Study(0.1, on_report=interrupt)
    assert [one.state for one in run_search(search_of(), tmp_path, 1, study=study, stop=stop)] == ["running"]
    tried = run_search(search_of(), tmp_path, 1, study=study)
    assert [one.state for one in tried] == ["finished"]
    assert len(study.trials) == 1
    assert read_metrics(tried[0].folder)[-1]["step"] == 4


def test_a_trial_that_diverges_counts_as_pruned(tmp_path):
    search = load_search("digits", {**TINY, "optim.clipping": None, "optim.lr": "1e-3..1e19"})
    study = Study(1e19, 0.01)
    tried = run_search(search, tmp_path, 2, study=study)
    assert [one.state for one in tried] == ["diverged", "finished"]
    assert states(study) == ["PRUNED", "COMPLETE"]
    assert best_trial(tried).fields == {"optim.lr": 0.01}


def test_images_that_are_not_there_end_the_search(tmp_path):
    study = Study(0.1, 0.2)
    with pytest.raises(UsageError, match="nowhere is not a folder"):
        run_search(search_of(**{"data.source": "imagefolder:nowhere"}), tmp_path, 2, study=study)
    assert states(study) == ["FAIL"]


def test_another_search_does_not_go_on_in_the_folder(tmp_path):
    study = Study(0.1)
    run_search(search_of(), tmp_path, 1, study=study)
    with pytest.raises(UsageError, match=r"another search: optim\.lr is 0\.01\.\.2, was 0\.01\.\.1; --out"):
        run_search(search_of(**{"optim.lr": "0.01..2"}), tmp_path, 1, study=study)


def test_what_is_refused(normfree, monkeypatch):
    for arguments, told in (
        (["digits"], "a search needs a range or choices of a field"),
        (["digits", "--optim.lr", "0.1"], "a search needs a range or choices of a field"),
        (["digits", "--optim.momentum", "0.5..1.5"], "optim.momentum (=1.5) must be at least 0 and below 1"),
        (["digits", "--optim.lr", "0.1..1", "--trials", "0"], "--trials (=0) must be at least 1"),
        (["digits", "--recipe", "digits", "--optim.lr", "0.1..1"], "digits and --recipe digits both say"),
    ):
        code, _, err = normfree("search", *arguments)
        assert code == 2
        assert err.startswith(f"normfree: {told}")
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, err = normfree("search", "digits", "--optim.lr", "0.1..1")
    assert (code, err) == (2, "normfree: normfree search needs Optuna: pip install 'normfree[search]'\n")


def test_with_optuna(normfree, tmp_path):
    pytest.importorskip("optuna")
    given = [word for path, value in TINY.items() for word in (f"--{path}", "null" if value is None else str(value))]
    command = ["search", "digits", *given, "--optim.lr", "0.05..2", "--optim.clipping", "[0.01,0.04]", "--quiet"]
    code, out, err = normfree(*command, "--trials", "2", "--out", "one")
    assert code == 0, err
    assert "2 trials: 2 finished" in out
    assert "next: normfree train --recipe digits" in out
    assert "3 trials" in normfree(*command, "--trials", "3", "--out", "one")[1]
    normfree(*command, "--trials", "3", "--out", "two")
    tables = [(tmp_path / name / "trials.csv").read_text() for name in ("one", "two")]
    assert tables[0] == tables[1]  # draws depend on seed, number and results alone
    rates = [float(row["optim.lr"]) for row in csv.DictReader(tables[0].splitlines())]
    assert all(0.05 <= rate <= 2 for rate in rates)
    assert len(set(rates)) == 3
