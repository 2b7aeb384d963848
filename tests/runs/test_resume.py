"""`normfree train --resume`, signals, and several processes by torchrun."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_runs import FLAGS

from normfree.training import find_checkpoint, read_metrics
from normfree.training.checkpoints import read_state, read_tensors

SIGNALLED = Path(__file__).parents[1] / "signalled_train.py"
OPTIONS = [*FLAGS, "--optim.warmup_epochs", "1", "--train.log_every", "1"]


def checkpoint(run):
    path, told = find_checkpoint(run / "checkpoints")
    assert told == []
    state = read_state(path)
    return {n: read_tensors(path, n) for n in ("weights", "ema", "momentum", "random")}, state


def same(a, b) -> bool:
    return all(torch.equal(t, b[n][k]) for n, tensors in a.items() for k, t in tensors.items())


def start(*arguments, processes=1, restarts=0, env=None, at=None) -> subprocess.Popen:
    """`python -m normfree train`, by torchrun if there are several processes; in a process group of its own.

    ``at``: (step, signal, rank) that the process of this rank sends itself when a step begins, unless it was restarted.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(port)]
    launcher += ["--max-restarts", str(restarts)]
    program = ["-m", "normfree"] if at is None else [str(SIGNALLED)]
    command = [sys.executable, *(launcher if processes > 1 else []), *program, "train", *map(str, arguments)]
    pipe = subprocess.PIPE
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | (env or {})
    if at is not None:
        environment["NORMFREE_TEST_SIGNAL"] = " ".join(str(int(number)) for number in at)
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True)


def until(condition, process, seconds=1800):
    """Wait for a condition; the processes' own progress decides, not the clock."""
    for _ in range(seconds * 20):
        if condition() or process.poll() is not None:
            return
        time.sleep(0.05)
    process.kill()
    raise AssertionError(process.communicate())


def steps(run) -> int:
    try:
        return max((line["step"] for line in read_metrics(run)), default=0)
    except (OSError, ValueError):
        return 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 60 steps that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    process = start(*OPTIONS, "--train.steps", 60, "--out", out)
    errors = process.communicate()[1]  # which closes its pipes
    assert process.returncode == 0, errors
    return out


def timeless(run):
    return [{k: v for k, v in line.items() if k not in ("images_per_s", "seconds_left")} for line in read_metrics(run)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "count", "asked", "known"),
    [
        ("start", 1, signal.SIGTERM, [0]),
        ("step", 8, signal.SIGTERM, [7, 8]),
        ("step", 8, signal.SIGINT, [7, 8]),
        ("evaluation", 2, signal.SIGTERM, [22]),
    ],
)
def test_a_signal_to_all_processes_saves_and_the_run_goes_on_bit_for_bit(
    tmp_path, whole, normfree, place, count, asked, known
):
    """A terminal's, systemd's and Slurm's reach those that decode images, too."""
    out, env = tmp_path / "run", dict(NORMFREE_TEST_PLACE=place, NORMFREE_TEST_GROUP="1")
    options = [*OPTIONS, "--train.steps", 60, "--data.workers", 2, "--out", out]
    process = start(*options, env=env, at=(count, asked, 0))
    said, errors = process.communicate()
    assert process.returncode == (0 if asked == signal.SIGTERM else 130), errors
    state = checkpoint(out)[1]
    assert state["step"] in known, errors
    assert state["unevaluated"] == (place == "evaluation")
    ended = read_metrics(out)[-1]
    assert (ended["state"], ended["step"]) == ("stopped", state["step"])
    goes_on = f"normfree train --resume {out}"
    if asked == signal.SIGTERM:
        assert f"stopped at step {state['step']} and saved it" in said
        assert goes_on in said
    else:
        assert f"stopped at step {state['step']}; the checkpoint of step {state['step']} is kept" in errors
        assert goes_on in errors
    assert "Traceback" not in errors
    result = normfree("train", "--resume", out, "--quiet", "--data.workers", 0)
    assert result.code == 0
    assert f"goes on after step {state['step']} of 60" in result.err
    assert same(checkpoint(out)[0], checkpoint(whole)[0])
    assert timeless(out) == timeless(whole)


def descendants(process: int) -> list[int]:
    """Children, their children, and so on."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [process]
    for one in found:
        found += parents.get(one, [])
    return found[1:]


@pytest.mark.slow
def test_a_signal_to_torchrun_and_all_its_processes(tmp_path):
    """As Slurm sends it; torchrun passes its own on, too."""
    out = tmp_path / "run"
    process = start(*OPTIONS, "--train.steps", 2000, "--data.workers", 1, "--out", out, processes=2)
    until(lambda: steps(out) >= 5, process)
    for one in [*descendants(process.pid), process.pid]:
        os.kill(one, signal.SIGTERM)
    said, errors = process.communicate()
    assert checkpoint(out)[1]["step"] >= 5, errors
    assert checkpoint(out)[1]["world"] == 2
    assert "stopped at step" in said
    assert read_metrics(out)[-1]["state"] == "stopped"


@pytest.mark.slow
@pytest.mark.full
def test_an_evaluation_of_several_processes_is_given_up_by_all(tmp_path):
    """One of them is asked."""
    out, env = tmp_path / "run", dict(NORMFREE_TEST_PLACE="evaluation", NORMFREE_TEST_GROUP="1")
    options = [*OPTIONS, "--train.steps", 60, "--data.workers", 1, "--train.eval_every", 0.2, "--out", out]
    process = start(*options, processes=2, env=env, at=(2, signal.SIGTERM, 1))
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    state = checkpoint(out)[1]
    assert (state["step"], state["unevaluated"], state["world"]) == (4, True, 2)
    assert "stopped at step 4 and saved it" in said
    assert "eval" not in {line["kind"] for line in read_metrics(out)}


@pytest.mark.slow
@pytest.mark.full
def test_a_killed_process_is_restarted_and_the_run_is_the_same(tmp_path):
    """torchrun --max-restarts: the command that is started again goes on with its own run."""
    outs = [tmp_path / "one", tmp_path / "two"]
    for out in outs:
        options = [*OPTIONS, "--train.steps", 40, "--train.save_every", 5, "--out", out, "--resume"]
        process = start(*options, processes=2, restarts=1, at=(13, signal.SIGKILL, 1) if out == outs[1] else None)
        errors = process.communicate()[1]
        assert process.returncode == 0, errors
        assert bool(re.search(r"exitcode *: -9|SIGKILL", errors)) == (out == outs[1]), errors
    (files, state), (others, other) = map(checkpoint, outs)
    assert state["step"] == other["step"] == 40
    assert same(files, others)


@pytest.mark.slow
@pytest.mark.full
def test_the_survivor_of_a_killed_process_says_what_is_kept_in_a_line(tmp_path):
    """Under torchrun, which then ends it, too."""
    out = tmp_path / "run"
    options = [*OPTIONS, "--train.steps", 400, "--train.save_every", 5, "--out", out]
    process = start(*options, processes=2, at=(13, signal.SIGKILL, 1))
    errors = process.communicate()[1]
    assert process.returncode == 1
    (line,) = [line for line in errors.splitlines() if "normfree: " in line]
    assert line.endswith(f"the checkpoint of step 10 is kept in {out}/checkpoints/last")
    assert "another process of this run has ended before its time" in line


def test_what_cannot_be_resumed(normfree, tmp_path, trained):
    for arguments, said in (
        (["--resume", tmp_path], r"is no run folder: it has no recipe.yaml"),
        (["--resume", trained, "--recipe", "digits"], "--recipe is for new runs"),
        (
            ["--resume", trained, "--optim.lr", "3"],
            "--optim.lr would make it another run: optim.lr is 1.0 there, not 3.0",
        ),
        (["--resume"], "needs --out"),
        (["--out", trained, "--resume"], "is a run with"),
    ):
        result = normfree("train", *arguments)
        assert result.code == 2
        assert said in result.error


def test_a_folder_with_a_lock_alone_is_said(normfree, tmp_path):
    """What a run leaves that was killed while it opened its images."""
    (tmp_path / "lock").write_text("")
    result = normfree("train", "--resume", tmp_path)
    assert result.code == 2
    assert f"has nothing to go on with; --out {tmp_path} --resume starts the run there" in result.error


@pytest.mark.parametrize("same", [[], ["--train.seed", "0", "--model.name", "nf_resnet26_small"]])
def test_a_finished_run_has_nothing_to_do(normfree, trained, same):
    """Options that say what the run's recipe says change nothing."""
    before = (trained / "metrics.jsonl").read_text()
    result = normfree("train", "--resume", trained, "--quiet", *same)
    assert result.code == 0
    assert "goes on after step 60 of 60" in result.err
    assert (trained / "metrics.jsonl").read_text() == before


def test_a_run_killed_before_its_first_checkpoint_starts_again(normfree, tmp_path):
    out = tmp_path / "run"
    (out / "checkpoints" / "step-00000000.part").mkdir(parents=True)
    (out / "examples").mkdir()
    (out / "recipe.yaml").write_text("model: {name: nf_res")
    (out / "starting").touch()
    assert normfree("train", *OPTIONS, "--train.steps", 1, "--out", out, "--resume").code == 0
    assert checkpoint(out)[1]["step"] == 1


def test_files_of_the_users_are_left_alone(normfree, tmp_path):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "recipe.yaml").write_text("model: {name: nf_resnet26_small}")
    result = normfree("train", *OPTIONS, "--out", out, "--resume")
    assert result.code == 2
    assert "exists already" in result.error
    (out / "checkpoints" / "step-00000000").mkdir(parents=True)
    (out / "starting").touch()  # as after a kill between the first checkpoint and the end of its mark
    assert normfree("train", *OPTIONS, "--out", out).code == 2
    assert (out / "recipe.yaml").read_text() == "model: {name: nf_resnet26_small}"
