"""How a run ends when something goes wrong: stopped in time, named, and with its last good checkpoint."""

import contextlib
import gc
import json
import multiprocessing
import os
import signal
import time

import pytest
import torch
from tiny_runs import Scripted, classification, evaluations, few_digits, trainer

from normfree import RunFailed, UsageError
from normfree.data import DataConfig, Source, UnreadableImage
from normfree.data import loader as loaders
from normfree.nn import WSConv2d
from normfree.tasks import Classification, TaskConfig
from normfree.training import TrainStep, checkpoints, pick_device, read_checkpoint, read_metrics


def steps_done(folder) -> int:
    return max((line["step"] for line in read_metrics(folder) if line["kind"] == "train"), default=0)


def test_divergence_stops_and_keeps_the_checkpoint(tmp_path):
    run = trainer(tmp_path, optim=dict(lr=1e15, clipping=None, warmup_epochs=0), train=dict(steps=50))
    with pytest.raises(RunFailed) as caught:
        run.fit()
    message, last = str(caught.value), steps_done(tmp_path)
    assert message.startswith(f"training stopped in step {last + 1} at learning rate {run.lr(last):.4g}: ")
    kept = read_checkpoint(tmp_path)[1]["step"]
    assert message.endswith(f"the checkpoint of step {kept} is kept in {tmp_path}/checkpoints/last")
    assert len(message.splitlines()) == 1
    for kind in ("weights", "ema"):
        assert all(value.isfinite().all() for value in read_checkpoint(tmp_path, "last", kind)[0].values())
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


def test_an_evaluation_that_is_not_finite_is_not_kept(tmp_path):
    run = trainer(tmp_path, task=Scripted([0.5, float("nan")]), train=dict(steps=4), optim=dict(ema_decay=None))
    with pytest.raises(RunFailed, match=r"evaluation after step 4 is not finite; the checkpoint of step 2 is kept in"):
        run.fit()
    assert read_checkpoint(tmp_path)[1]["step"] == 2


@pytest.mark.parametrize(
    ("ema", "images", "step"),
    [(None, [0], 2), (None, [20, 0], 4), (0.9, [20, 20, 20, 0], 4)],
    ids=["first", "second", "averaged weights"],
)
def test_an_evaluation_that_read_no_image_is_no_score(tmp_path, ema, images, step):
    """As when the folder of the test images is gone while the run trains."""
    task = Scripted([0.5, 0.9, 0.9, 0.9] if ema is None else [0.5] * 4)
    metrics = task.metrics

    def counted():
        found, count = metrics(), images.pop(0)
        compute = found.compute
        found.compute = lambda: compute() | dict(images=count)
        return found

    task.metrics = counted
    run = trainer(tmp_path, task=task, train=dict(steps=4), optim=dict(ema_decay=ema))
    with pytest.raises(RunFailed, match=rf"^the evaluation after step {step} read none of its images; the checkpoint"):
        run.fit()
    assert [line["step"] for line in evaluations(tmp_path)] == ([] if step == 2 else [2])
    assert read_checkpoint(tmp_path)[1]["step"] == step - 2
    assert run.state.best.get("step") == (None if step == 2 else 2)


def test_interrupting_says_what_is_kept(tmp_path, monkeypatch):
    run = trainer(tmp_path)
    call = TrainStep.__call__

    def interrupted(step, batch, lr, images):
        if steps_done(tmp_path) == 2:
            raise KeyboardInterrupt
        return call(step, batch, lr, images)

    monkeypatch.setattr(TrainStep, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"stopped at step \d; the checkpoint of step 2 is kept in .*last"):
        run.fit()
    assert read_checkpoint(tmp_path)[1]["step"] == 2


def test_an_interrupt_lets_the_step_finish_and_saves_it(tmp_path, monkeypatch):
    run = trainer(tmp_path)
    call, before = TrainStep.__call__, signal.getsignal(signal.SIGINT)

    def interrupted(step, batch, lr, images):
        if run.state.recent and not run.stop.received and len(run.state.recent) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return call(step, batch, lr, images)

    monkeypatch.setattr(TrainStep, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"stopped at step 3; the checkpoint of step 3 is kept in .*last"):
        run.fit()
    state, description, _ = read_checkpoint(tmp_path, kind="weights")
    assert description["step"] == 3
    assert all(torch.equal(state[name], value) for name, value in run.model.state_dict().items())
    assert signal.getsignal(signal.SIGINT) is before


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    run = trainer(tmp_path)
    evaluate_ = run._evaluate

    def on_a_full_disk():
        if run.state.step == 4:
            monkeypatch.setattr(checkpoints.os, "rename", full_disk)
        evaluate_()

    monkeypatch.setattr(run, "_evaluate", on_a_full_disk)
    with pytest.raises(
        RunFailed, match=r"cannot write checkpoint .*step-00000004: No space .*; the checkpoint of step 2 is kept"
    ):
        run.fit()
    for kind in ("weights", "ema"):
        assert read_checkpoint(tmp_path, "last", kind)[1]["step"] == 2
    assert not list(tmp_path.rglob("*.part"))


def full_disk(*args):
    raise OSError(28, "No space left on device")


class Broken:
    """A split of which some images cannot be read."""

    def __init__(self, split, unreadable):
        self.split, self.unreadable = split, unreadable

    def __len__(self):
        return len(self.split)

    def __getattr__(self, name):
        return getattr(self.split, name)

    def image(self, index):
        if index in self.unreadable:
            raise UnreadableImage(f"{self.split.name(index)}: broken")
        return self.split.image(index)


def broken(train=(), test=()) -> Classification:
    source = few_digits()
    return classification(Source(Broken(source.train, train), Broken(source.test, test), source.classes))


def test_unreadable_images_are_named_once_and_skipped(tmp_path, capsys):
    task = broken(train=(3, 5), test=(1,))
    summary = trainer(tmp_path, task=task, train=dict(steps=None, epochs=6), max_unreadable=3).fit()
    expected = ["digits/train[3]: broken", "digits/train[5]: broken", "digits/test[1]: broken"]
    assert sorted(map(str, summary.unreadable)) == sorted(expected)
    assert summary.last["images"] == 19
    said = "".join(capsys.readouterr())
    assert all(said.count(message) == 1 for message in expected)


def test_too_many_unreadable_images_stop_the_run(tmp_path):
    run = trainer(tmp_path, task=broken(train=range(40), test=()), max_unreadable=4)
    with pytest.raises(
        RunFailed,
        match=r"unreadable images: 16, .* data\.max_unreadable \(=4\).*train\[\d+\]: broken; .* of step 0",
    ):
        run.fit()
    with pytest.raises(RunFailed, match=r"unreadable images: 1, .*test\[2\]: broken; "):
        trainer(tmp_path / "b", task=broken(test=(2,)), max_unreadable=0).fit()


def test_no_readable_image_at_all(tmp_path):
    with pytest.raises(RunFailed, match="no readable image in epoch 0"):
        trainer(tmp_path, task=broken(train=range(40)), max_unreadable=100).fit()


def test_devices_by_name():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    absent = ["gpu", "cuda:99", "", "meta", "vulkan", "hpu"] + ["mps"] * (not torch.backends.mps.is_available())
    for name in absent:
        with pytest.raises(UsageError, match=rf"device \(='{name}'\) is not available") as caught:
            pick_device(name)
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 200
        assert "; use auto, cpu" in str(caught.value) or "; use auto or cpu" in str(caught.value)


def test_a_device_without_float64_does_not_train(tmp_path):
    with pytest.raises(
        UsageError, match=r"device \(='mps'\) has no float64, in which sums are taken here; use cpu or cuda"
    ):
        trainer(tmp_path, train=dict(device="mps"))


def test_a_step_left_out_is_said_and_logged(tmp_path, capsys):
    run = trainer(tmp_path, train=dict(skip_nonfinite=3, steps=6))
    loss, calls = run.task.loss, []
    run.task.loss = lambda output, batch: (
        loss(output, batch) * (float("inf") if calls.append(1) or len(calls) in (1, 3) else 1)
    )
    summary = run.fit()
    assert summary.steps == 6
    skipped = [line for line in read_metrics(tmp_path) if line["kind"] == "skipped"]
    assert [line["step"] for line in skipped] == [1, 3]
    assert all(line["reason"].startswith("the loss is inf") for line in skipped)
    assert [line["step"] for line in read_metrics(tmp_path) if line["kind"] == "train"] == [2, 4, 5, 6]
    assert capsys.readouterr().err.count("was left out: the loss is inf") == 2


def test_steps_left_out_do_not_push_out_the_checkpoints_from_before(tmp_path):
    """A network that has exploded saves the same weights again and again; those from before are the way back."""
    run = trainer(tmp_path, train=dict(skip_nonfinite=9, steps=12, save_every=1, eval_every=99))
    loss, seen = run.task.loss, []
    run.task.loss = lambda output, batch: loss(output, batch) * (float("nan") if 4 <= run.state.step < 9 else 1)
    run.on_step = lambda step: seen.append(sorted(p.name[-2:] for p in (tmp_path / "checkpoints").glob("step-*")))
    run.fit()
    assert seen[5] == ["03", "04"]  # of the steps 5 to 9 nothing is learned
    assert seen[6:11] == [["03", "04", f"{step:02}"] for step in range(5, 10)]
    assert seen[11:] == [["04", "10"], ["10", "11"]]


@pytest.mark.parametrize(("stages", "found"), [("all", {0, 1, 2}), ([1], {1}), (None, set())])
def test_recipes_name_the_stages_that_are_computed_again(tmp_path, stages, found):
    run = trainer(tmp_path, train=dict(activation_checkpointing=stages, steps=2))
    assert {number for number, stage in enumerate(run.model.stages) if stage.grad_checkpointing} == found
    run.fit()


@pytest.mark.parametrize("again", [True, False])
def test_recipes_say_whether_standardized_weights_are_kept(tmp_path, again):
    run = trainer(tmp_path, train=dict(recompute_weights=again, steps=2))
    assert {m.weight_kept for m in run.model.modules() if isinstance(m, WSConv2d)} == {not again}
    run.fit()


@pytest.mark.parametrize("what", ["run", "run/checkpoints"])
@pytest.mark.parametrize("error", [RunFailed("no more"), KeyboardInterrupt()], ids=["failed", "interrupted"])
def test_a_checkpoint_that_is_gone_is_not_said_to_be_kept(tmp_path, monkeypatch, what, error):
    """The folder was moved while the run trained."""
    run, call = trainer(tmp_path / "run"), TrainStep.__call__

    def moved(step, *args):
        if run.state.step == 3:
            (tmp_path / what).rename(tmp_path / "moved")
            raise error
        return call(step, *args)

    monkeypatch.setattr(TrainStep, "__call__", moved)
    with pytest.raises(type(error)) as caught:
        run.fit()
    assert str(caught.value).endswith(f"; the checkpoint of step 2 is gone from {tmp_path}/run/checkpoints")


def test_stages_that_are_not_there_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"train\.activation_checkpointing \(=\[7\]\): stage 7 is not there"):
        trainer(tmp_path, train=dict(activation_checkpointing=[7]))


@pytest.mark.parametrize("how", ["finished", "failed", "interrupted"])
def test_the_last_line_says_how_a_run_ended(tmp_path, how, monkeypatch):
    run, call = trainer(tmp_path, train=dict(steps=4)), TrainStep.__call__

    def step(self, batch, lr, images):
        if how != "finished" and run.state.step == 2:
            raise RunFailed("no more") if how == "failed" else KeyboardInterrupt
        return call(self, batch, lr, images)

    monkeypatch.setattr(TrainStep, "__call__", step)
    if how == "finished":
        run.fit()
    else:
        with pytest.raises(RunFailed if how == "failed" else KeyboardInterrupt):
            run.fit()
    state, reason, steps = {
        "finished": ("finished", "", 4),
        "failed": ("failed", "training stopped in step 3 at learning rate 0.1: no more", 2),
        "interrupted": ("stopped", "it was interrupted", 2),
    }[how]
    assert read_metrics(tmp_path)[-1] == dict(kind="end", step=steps, state=state, reason=reason)
    run.run.drop_after(9)  # as a resumed run does
    assert "end" not in {line["kind"] for line in read_metrics(tmp_path)}


def test_ctrl_c_says_how_to_go_on(tmp_path):
    folder = tmp_path / "a run"
    run = trainer(folder)
    run.on_step = lambda step: setattr(run.stop, "received", signal.SIGINT if step == 3 else None)
    with pytest.raises(KeyboardInterrupt, match="stopped at step 3; the checkpoint of step 3 is kept") as stopped:
        run.fit()
    assert str(stopped.value).endswith(f"; normfree train --resume '{folder}' goes on")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # from Python 3.12 on
@pytest.mark.parametrize("end", ["finished", "stopped", "failed"])
def test_no_process_that_decodes_outlives_the_run(tmp_path, monkeypatch, end):
    """In the middle of an epoch, where batches are still being made; left to the garbage collector they took long."""
    data = DataConfig(channels=1, resize_margin=0, crop="shift", flip=False, workers=2)
    task = Classification(few_digits(400), TaskConfig(), data, image_size=8, test_size=8, batch_size=16, seed=0)
    run = trainer(tmp_path, task=task, train=dict(steps=4))
    if end == "stopped":
        run.on_step = lambda step: setattr(run.stop, "received", signal.SIGTERM)
    elif end == "failed":
        monkeypatch.setattr(run, "on_step", lambda step: (_ for _ in ()).throw(RunFailed("planted")) if step else None)
    gc.disable()
    try:
        with contextlib.suppress(RunFailed):
            run.fit()
        assert multiprocessing.active_children() == []
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # from Python 3.12 on
def test_a_process_that_decodes_dies_during_a_step(tmp_path, monkeypatch):
    """torch raises its error at any place."""
    data = DataConfig(channels=1, resize_margin=0, crop="shift", flip=False, workers=2)
    task = Classification(few_digits(400), TaskConfig(), data, image_size=8, test_size=8, batch_size=16, seed=0)
    run = trainer(tmp_path, task=task, train=dict(steps=9))
    call = TrainStep.__call__

    def killing(self, batch, lr, images):
        if run.state.step == 3:
            for process in multiprocessing.active_children():
                process.kill()
                process.join()
        return call(self, batch, lr, images)

    monkeypatch.setattr(TrainStep, "__call__", killing)
    with pytest.raises(RunFailed) as caught:
        run.fit()
    (message,) = str(caught.value).splitlines()
    assert message.startswith("process ")
    assert ", which decodes images, was ended by SIGKILL (memory may have run out" in message
    assert f"; the checkpoint of step 0 is kept in {tmp_path}" in message
    assert read_metrics(tmp_path)[-1]["state"] == "failed"
    assert multiprocessing.active_children() == []


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # from Python 3.12 on
def test_an_image_that_never_ends(tmp_path, monkeypatch):
    """In a test image, on a file system that does not answer."""
    monkeypatch.setattr(loaders, "POLL", 0.1)
    monkeypatch.setattr(loaders, "GRACE", 0.5)
    source = few_digits()

    class Hanging(Broken):
        def image(self, index):
            if index == 18:
                time.sleep(10**6)
            return self.split.image(index)

    data = DataConfig(channels=1, resize_margin=0, crop="shift", flip=False, workers=1, timeout=1)
    source = Source(source.train, Hanging(source.test, ()), source.classes)
    task = Classification(source, TaskConfig(), data, image_size=8, test_size=8, batch_size=16, seed=0)
    with pytest.raises(RunFailed) as caught:
        trainer(tmp_path, task=task).fit()
    message = str(caught.value)
    assert ", which decodes images, is stuck at image digits/test[18] for more than 1 s (data.timeout); " in message
    assert message.endswith(f"the checkpoint of step 0 is kept in {tmp_path}/checkpoints/last")
    assert read_metrics(tmp_path)[-1]["state"] == "failed"
    assert multiprocessing.active_children() == []
