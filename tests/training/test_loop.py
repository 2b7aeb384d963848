"""A tiny run: what it writes, that it repeats bit for bit, and how it ends when something goes wrong."""

import math

import pytest
import torch
from tiny_runs import Scripted, classification, network, trainer

from normfree.training import TrainConfig, TrainStep, evaluate, read_checkpoint, read_metrics, read_weights
from normfree.training.device import memory_format_of

TIMES = {"images_per_s", "seconds_left"}
BY_STAGE = {"clipped_by_stage", "largest_ratio"}
TRAIN_FIELDS = {"kind", "step", "epoch", "lr", "loss", "accuracy", "clipped", "gradient_norm", "parameter_norm"}
TRAIN_FIELDS |= TIMES | BY_STAGE
EVAL_FIELDS = {"kind", "step", "epoch", "top1", "top5", "loss", "images"}


def identical(state, expected) -> bool:
    return state.keys() == expected.keys() and all(torch.equal(state[k], expected[k]) for k in expected)


def lines(folder, kind):
    return [line for line in read_metrics(folder) if line["kind"] == kind]


def test_what_a_run_writes(tmp_path):
    run = trainer(tmp_path, train=dict(steps=5, log_every=2))  # 2 steps per epoch: the end is within an epoch
    summary = run.fit()
    assert (summary.steps, summary.unreadable) == (5, [])
    train, evals = lines(tmp_path, "train"), lines(tmp_path, "eval")
    assert [line["step"] for line in train] == [2, 4, 5]
    assert [line["step"] for line in evals] == [2, 4, 5]
    assert [line["epoch"] for line in evals] == [1.0, 2.0, 2.5]
    assert all(line.keys() == TRAIN_FIELDS for line in train)
    assert all(
        line.keys() == EVAL_FIELDS | {f"ema_{k}" for k in EVAL_FIELDS - {"kind", "step", "epoch"}} for line in evals
    )
    for line in train + evals:
        assert all(
            isinstance(value, int | float) and math.isfinite(value)
            for k, value in line.items()
            if k not in BY_STAGE | {"kind"}
        )
    assert [line["lr"] for line in train] == [
        run.optim.lr_at(s - 1, batch_size=16, total_steps=5, steps_per_epoch=2) for s in (2, 4, 5)
    ]
    assert all(line["images"] == 20 for line in evals)
    assert summary.last == {k: v for k, v in evals[-1].items() if k != "kind"}
    assert 0 < summary.train_seconds <= summary.seconds


def test_checkpoints_are_the_networks(tmp_path):
    run = trainer(tmp_path)
    summary = run.fit()
    for kind, state in (("weights", run.model.state_dict()), ("ema", run.ema.average)):
        saved, description, _ = read_checkpoint(tmp_path, "last", kind)
        assert identical(saved, dict(state))
        assert description == dict(classes=list("0123456789"), kind=kind, **summary.last)
    assert not identical(dict(run.model.state_dict()), run.ema.average)
    # and the averaged weights were those evaluated as such
    fresh = network()
    fresh.load_state_dict(read_checkpoint(tmp_path, "last", "ema")[0])
    measured, unreadable = evaluate(fresh, run.task.test, run.task.metrics(), run.device)
    assert measured["loss"] == summary.last["ema_loss"]
    assert unreadable == []


def test_an_epoch_trains_on_every_image_once(tmp_path, monkeypatch):
    run, seen = trainer(tmp_path, task=classification(batch_size=8), train=dict(batch_size=8, steps=10)), []
    call = TrainStep.__call__
    noting = lambda step, batch, *rest: seen.append(batch.indices.tolist()) or call(step, batch, *rest)  # noqa: E731
    monkeypatch.setattr(TrainStep, "__call__", noting)
    run.fit()
    epochs = [[i for batch in seen[start : start + 5] for i in batch] for start in (0, 5)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(40))] * 2
    assert epochs[0] != epochs[1]


def test_without_averaging_there_is_none(tmp_path):
    summary = trainer(tmp_path, optim=dict(ema_decay=None, clipping=None), train=dict(steps=2)).fit()
    assert summary.last.keys() == EVAL_FIELDS - {"kind"}
    assert not (tmp_path / "checkpoints" / "last" / "ema.safetensors").exists()
    assert all(line["clipped"] is None for line in lines(tmp_path, "train"))


@pytest.mark.parametrize("options", [{}, dict(precision="bfloat16", channels_last=True, micro_batch=5)])
def test_the_same_seed_gives_the_same_bits(tmp_path, options):
    states = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trainer(tmp_path / name, train=dict(steps=4, seed=seed, **options)).fit()
        states[name] = read_checkpoint(tmp_path / name, "last", "weights")[0]
        assert {value.dtype for value in states[name].values()} == {torch.float32}
    assert identical(states["a"], states["b"])
    assert not identical(states["a"], states["c"])
    timeless = [
        [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(tmp_path / n)] for n in "ab"
    ]
    assert timeless[0] == timeless[1]


def test_micro_batches_train_the_same_network(tmp_path):
    """Without dropout, whose masks are drawn per piece."""
    states = []
    for micro_batch in (None, 5):
        torch.manual_seed(0)
        model = network()
        trainer(tmp_path / str(micro_batch), model=model, train=dict(micro_batch=micro_batch, steps=4)).fit()
        states.append(model.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-4)  # four steps of float32 rounding


@pytest.mark.parametrize(
    ("train", "total", "evaluations"),
    [
        (dict(steps=None, epochs=2), 4, [2, 4]),
        (dict(steps=None, epochs=1.5), 3, [2, 3]),
        (dict(steps=None, epochs=0.01), 1, [1]),
        (dict(steps=5, epochs=9), 5, [2, 4, 5]),
        (dict(steps=5, eval_every=2), 5, [4, 5]),
        (dict(steps=3, eval_every=0.01), 3, [1, 2, 3]),
        (dict(steps=3, eval_every=1e9), 3, [3]),
    ],
)
def test_length_and_evaluations(tmp_path, train, total, evaluations):
    assert trainer(tmp_path, train=train).fit().steps == total
    assert [line["step"] for line in lines(tmp_path, "eval")] == evaluations
    assert lines(tmp_path, "train")[-1]["step"] == total


@pytest.mark.parametrize(
    ("ema", "scores", "best"),
    [
        (None, [0.1, 0.5, 0.3, 0.5], 2),  # the first of equals
        (None, [0.1, 0.2, 0.3, 0.4], 4),
        (None, [0.0, 0.0, 0.0, 0.0], 1),
        # raw, averaged, raw, averaged, ...: the averaged ones decide
        (0.9, [0.9, 0.1, 0.2, 0.2, 0.8, 0.7, 0.9, 0.6], 3),
    ],
)
def test_best_is_the_best_evaluation(tmp_path, ema, scores, best):
    run = trainer(tmp_path, task=Scripted(scores), train=dict(steps=4, eval_every=0.5), optim=dict(ema_decay=ema))
    weights, save = {}, run.run.checkpoints.save

    def noting(step, files, state, **options):
        weights.setdefault(step, {k: v.clone() for k, v in files["weights"].items()})
        save(step, files, state, **options)

    run.run.checkpoints.save = noting
    summary = run.fit()
    assert summary.best["step"] == best
    assert summary.last["step"] == 4
    state, description, _ = read_checkpoint(tmp_path, "best", "weights")
    assert description["step"] == best
    assert identical(state, weights[best])
    assert read_checkpoint(tmp_path, "last")[1]["step"] == 4


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_the_mode(training):
    task, model = classification(), network(drop_rate=0.5).train(training)
    results = [evaluate(model, task.test, task.metrics(), torch.device("cpu"))[0] for _ in range(2)]
    assert model.training is training
    assert results[0] == results[1]  # no dropout
    assert all(p.grad is None for p in model.parameters())

    def failing(*args):
        raise KeyboardInterrupt

    metric = task.metrics()
    metric.update = failing
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, task.test, metric, torch.device("cpu"))
    assert model.training is training


def test_weights_files_need_no_run(tmp_path):
    trainer(tmp_path, train=dict(steps=1)).fit()
    state, description = read_weights(tmp_path / "checkpoints" / "best" / "ema.safetensors")
    assert description["step"] == 1
    load = network()
    load.load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "device", "last"),
    [
        ({}, "cpu", False),
        (dict(precision="bfloat16"), "cpu", True),
        (dict(precision="bfloat16"), "cuda", False),
        (dict(precision="bfloat16", parallel="fsdp"), "cpu", False),
        (dict(precision="bfloat16", channels_last=False), "cpu", False),
        (dict(channels_last=True), "cpu", True),
        (dict(channels_last=True), "cuda", True),
    ],
)
def test_layout(options, device, last):
    expected = torch.channels_last if last else torch.contiguous_format
    assert memory_format_of(TrainConfig(**options), torch.device(device)) is expected
