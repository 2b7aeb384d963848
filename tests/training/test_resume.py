"""Going on after an interruption: bit for bit as if nothing had happened."""

import contextlib
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from checkpoint_files import remove
from selection import share
from tiny_runs import trainer

from normfree import RunFailed, UsageError
from normfree.training import Checkpoints, StopRequests, TrainStep, damage, find_checkpoint, read_metrics
from normfree.training.checkpoints import read_state, read_tensors

OPTIONS = dict(steps=9, log_every=1, eval_every=2)  # 2 steps an epoch, evaluations at 4, 8, 9


def build(folder, new=True, **train):
    """A trainer of a new run, or of the one in the folder (which must be empty only if it is new)."""
    if new:
        return trainer(folder, train={**OPTIONS, **train}, optim=dict(sam_rho=0.05))
    kept = folder.with_name(folder.name + "-kept")
    folder.rename(kept)
    made = trainer(folder, train={**OPTIONS, **train}, optim=dict(sam_rho=0.05))
    for name in ("metrics.jsonl", "starting"):
        (folder / name).unlink()
    folder.rmdir()
    kept.rename(folder)
    torch.manual_seed(123)  # what the new process's random state is must not matter
    return made


def everything(run):
    """Parameters, momentum, averages, random state, progress."""
    checkpoint, _ = find_checkpoint(run.run.checkpoints.folder)
    files = {name: read_tensors(checkpoint, name) for name in ("weights", "ema", "momentum", "random")}
    state = read_state(checkpoint)
    state.pop("seconds")
    state["recent"] = [step[:3] for step in state["recent"]]  # without seconds
    return files, state


def same(a, b):
    (files, state), (other, other_state) = a, b
    assert state == other_state
    for name, tensors in files.items():
        assert tensors.keys() == other[name].keys()
        assert all(torch.equal(tensor, other[name][key]) for key, tensor in tensors.items()), name


def timeless(folder):
    return [
        {k: v for k, v in line.items() if k not in ("images_per_s", "seconds_left")} for line in read_metrics(folder)
    ]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = build(tmp_path_factory.mktemp("whole") / "run")
    run.fit()
    return run


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 8])  # in the middle of an epoch, at its end, at an evaluation
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, uninterrupted, stop):
    folder = tmp_path / "run"
    run = build(folder)
    call = TrainStep.__call__

    def asked(step, *args):
        if run.state.step == stop - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return call(step, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", asked)
        summary = run.fit()
    assert summary.stopped
    assert summary.steps == stop
    again = build(folder, new=False)
    assert again.resume(find_checkpoint(folder / "checkpoints")[0]) == []
    final = again.fit()
    assert (final.steps, final.stopped) == (9, False)
    same(everything(again), everything(uninterrupted))
    assert timeless(folder) == timeless(uninterrupted.run.folder)


def test_lines_of_lost_steps_are_written_again(tmp_path, uninterrupted):
    """A kill between checkpoints: the log is ahead of the last checkpoint."""
    folder = tmp_path / "run"
    run = build(folder)
    call = TrainStep.__call__

    def fails(step, *args):
        if run.state.step == 6:
            raise RunFailed("the power went out")
        return call(step, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", fails)
        with pytest.raises(RunFailed, match="checkpoint of step 4 is kept"):
            run.fit()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    again = build(folder, new=False)
    again.resume(find_checkpoint(folder / "checkpoints")[0])
    again.fit()
    same(everything(again), everything(uninterrupted))
    steps = [line["step"] for line in read_metrics(folder) if line["kind"] == "train"]
    assert steps == list(range(1, 10))


@pytest.fixture
def saved(tmp_path):
    """Two checkpoints with known contents."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", dict(classes=["a"]))
    for step in (1, 2):
        files = dict(weights={"w": torch.full((64,), float(step))}, momentum={"w": torch.ones(64)})
        checkpoints.save(step, files, dict(step=step))
    return tmp_path / "checkpoints"


def test_every_damage_is_found_and_the_one_before_is_used(saved):
    torch.manual_seed(0)
    files = sorted(path for path in (saved / "step-00000002").iterdir())
    for case in range(200):
        path = files[case % len(files)]
        good = path.read_bytes()
        place = int(torch.randint(len(good), ()))
        broken = bytearray(good)
        broken[place] ^= 1 << int(torch.randint(8, ()))
        path.write_bytes(good[:place] if case % 2 else bytes(broken))
        try:
            assert damage(path.parent), f"{path.name} at {place}"
            found, told = find_checkpoint(saved)
            assert read_state(found)["step"] == 1
            assert "step-00000002 is damaged" in told[0]
            assert "step-00000001 is used instead" in told[1]
        finally:
            path.write_bytes(good)
    assert damage(saved / "step-00000002") is None
    assert find_checkpoint(saved) == (saved / "step-00000002", [])


def test_missing_files_and_links(saved):
    (saved / "last").unlink()
    assert find_checkpoint(saved) == (saved / "step-00000002", [])  # the newest is the last
    (saved / "step-00000002" / "weights.safetensors").unlink()
    assert find_checkpoint(saved)[0].name == "step-00000001"
    (saved / "step-00000001" / "manifest.json").write_text("[]")
    with pytest.raises(UsageError, match=r"no good checkpoint: .*step-00000001 is damaged"):
        find_checkpoint(saved)


def happens(call, nth):
    """Whether a save calls it so often: one rename, two links, one file that is opened for each synchronization."""
    return nth <= dict(rename=1, replace=2, symlink=2, fsync=6, open=6)[call]


@pytest.mark.parametrize("call", ["rename", "replace", "symlink", "fsync", "open"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_failing_disk_leaves_the_checkpoint_before(saved, monkeypatch, call, nth):
    from normfree.training import checkpoints as module

    real, calls = getattr(os, call), []

    def failing(*args, **options):
        calls.append(args)
        if len(calls) == nth:
            raise OSError(28, "No space left on device", str(args[0]))
        return real(*args, **options)

    writer = Checkpoints(saved, dict(classes=["a"]))
    files = dict(weights={"w": torch.full((64,), 3.0)}, momentum={"w": torch.ones(64)})
    with monkeypatch.context() as patch:
        patch.setattr(module.os, call, failing)
        expected = pytest.raises(RunFailed, match=rf"cannot write checkpoint {saved}/step-00000003: No space left")
        with expected if happens(call, nth) else contextlib.nullcontext():
            writer.save(3, files, dict(step=3), best=True)
    assert (len(calls) >= nth) == happens(call, nth)
    found, _ = find_checkpoint(saved)
    assert read_state(found)["step"] in ((2, 3) if happens(call, nth) else (3,))
    assert damage(found) is None
    assert read_tensors(found, "weights")["w"][0] == read_state(found)["step"]
    writer.save(4, files, dict(step=4))
    assert find_checkpoint(saved) == (saved / "step-00000004", [])
    assert not list(saved.glob("*.part"))


def test_which_checkpoints_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, {}, keep_every=4)
    for step in range(11):
        checkpoints.save(step, dict(weights={"w": torch.ones(1)}), dict(step=step), best=step == 5)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == [f"step-{n:08d}" for n in (4, 5, 8, 9, 10)]
    assert os.readlink(tmp_path / "best") == "step-00000005"


WRITER = """
import sys, torch
from pathlib import Path
from normfree.training import Checkpoints
checkpoints = Checkpoints(Path(sys.argv[1]), dict(classes=["a"]))
print("ready", flush=True)
for step in range(1, 10_000_000):
    files = {name: {"w": torch.full((50_000,), float(step))} for name in ("weights", "momentum", "ema")}
    checkpoints.save(step, files, dict(step=step), best=step % 3 == 0)
    print(step, flush=True)
"""


@pytest.mark.slow
@pytest.mark.scaled
def test_a_kill_at_any_moment_leaves_a_checkpoint(tmp_path):
    """SIGKILL at 50 random moments (by default 3): the last acknowledged save, or a later one, is whole."""
    torch.manual_seed(0)
    for kill in range(share(50, 0.06)):  # each starts a process, which takes seconds
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.02 + 0.3 * torch.rand(()).item())
        process.send_signal(signal.SIGKILL)
        acknowledged = [int(line) for line in process.communicate()[0].splitlines()]
        if not acknowledged and kill == 0:
            continue
        found, told = find_checkpoint(tmp_path)
        assert told == []
        step = read_state(found)["step"]
        assert step >= max(acknowledged, default=1)
        for name in ("weights", "momentum", "ema"):
            assert (read_tensors(found, name)["w"] == step).all()
        assert json.loads((found / "manifest.json").read_text())["step"] == step


@pytest.mark.parametrize(("update", "step"), [(1, 4), (3, 4), (9, 9)])  # of weights, averages, at the end
def test_an_evaluation_that_was_given_up_is_done_first(tmp_path, uninterrupted, update, step):
    """A scheduler does not wait for the end of a long one."""
    folder, seen = tmp_path / "run", itertools.count(1)
    run = build(folder)
    metrics = run.task.metrics

    def asked():
        found = metrics()
        counted = found.update

        def updated(output, batch):
            counted(output, batch)
            if next(seen) == update:
                os.kill(os.getpid(), signal.SIGTERM)

        found.update = updated
        return found

    run.task.metrics = asked
    summary = run.fit()
    assert summary.stopped
    assert summary.steps == step
    assert next(seen) == update + 1  # the next batch was not looked at
    assert everything(run)[1]["unevaluated"]
    assert step not in [line["step"] for line in read_metrics(folder) if line["kind"] == "eval"]
    again = build(folder, new=False)
    again.resume(find_checkpoint(folder / "checkpoints")[0])
    assert not again.fit().stopped
    same(everything(again), everything(uninterrupted))
    assert timeless(folder) == timeless(uninterrupted.run.folder)


def test_what_a_checkpoint_lacks_is_said(tmp_path):
    """A run goes on without random states or momentum."""
    whole = trainer(tmp_path / "whole")
    whole.fit()
    checkpoint, _ = find_checkpoint(whole.run.checkpoints.folder)
    for name in ("random", "momentum"):
        remove(checkpoint, f"{name}.safetensors")
    assert find_checkpoint(whole.run.checkpoints.folder) == (checkpoint, [])
    again = trainer(tmp_path / "again", train=dict(steps=8))
    assert again.resume(checkpoint) == [
        f"{checkpoint} has no momentum.safetensors: the momentum begins again at zero",
        f"{checkpoint} has no random states: the same images in the same order, but other dropout masks",
    ]
    assert again.fit().steps == 8


def test_a_request_before_the_first_step_saves_step_0(tmp_path, uninterrupted):
    stop = StopRequests()
    stop.received = signal.SIGTERM
    folder = tmp_path / "run"
    run = build(folder)
    run.stop = stop
    summary = run.fit()
    assert (summary.steps, summary.stopped) == (0, True)
    again = build(folder, new=False)
    again.resume(find_checkpoint(folder / "checkpoints")[0])
    again.fit()
    same(everything(again), everything(uninterrupted))


def test_running_means_continue(tmp_path):
    """The first line after a stop is over the steps before it, too: losses of 1, 2, 3, ... in windows of 4 steps."""
    folder = tmp_path / "run"

    def counting(run):
        class Counting(TrainStep):
            def __call__(self, batch, lr, images):
                return dataclasses.replace(super().__call__(batch, lr, images), loss=run.state.step + 1.0)

        run.step.__class__ = Counting
        return run

    first = counting(build(folder, log_every=4, steps=8, eval_every=99))
    first.on_step = lambda step: setattr(first.stop, "received", signal.SIGTERM if step == 6 else None)
    assert first.fit().steps == 6
    second = counting(build(folder, new=False, log_every=4, steps=8, eval_every=99))
    second.resume(find_checkpoint(folder / "checkpoints")[0])
    second.fit()
    lines = [(line["step"], line["loss"]) for line in read_metrics(folder) if line["kind"] == "train"]
    assert lines == [(4, 2.5), (8, 6.5)]


def test_a_run_whose_batches_cross_epochs_goes_on(tmp_path):
    """40 images, 16 a batch, 3 epochs: 7 steps of 16; stopped in the batch that crosses into the second epoch."""
    from tiny_runs import classification

    def make(folder):
        crossing = classification(across_epochs=True)
        return trainer(folder, task=crossing, train=dict(steps=None, epochs=3.0, across_epochs=True))

    whole = make(tmp_path / "whole")
    assert whole.total_steps == 7
    assert whole.fit().steps == 7
    for stop in (2, 3, 5):
        first = make(tmp_path / f"stopped{stop}")
        first.on_step = lambda step, run=first, stop=stop: setattr(
            run.stop, "received", signal.SIGTERM if step == stop else None
        )
        assert first.fit().steps == stop
        second = make(tmp_path / f"resumed{stop}")
        second.resume(find_checkpoint(first.run.checkpoints.folder)[0])
        second.fit()
        same(everything(second), everything(whole))
    assert all(line["images"] == 20 for line in read_metrics(tmp_path / "whole") if line["kind"] == "eval")
