"""What is written while a run trains: clipping by layer and stage, norms, the environment, TensorBoard."""

import json
import math
import sys

import pytest
import torch
from tiny_runs import classification, network, trainer

from normfree import UsageError
from normfree.functional import unitwise_norm
from normfree.training import Run, read_metrics
from normfree.training.run import CLIPPING, ENVIRONMENT
from normfree.training.trackers import BOARD
from normfree.training.train_log import by_stage, layer_of


@pytest.mark.parametrize(
    ("parameter", "layer"),
    [
        ("stages.0.1.conv0.weight", "stages.0.1"),
        ("stages.2.0.squeeze_excite.fc0.bias", "stages.2.0"),
        ("stem.0.gain", "stem.0"),
        ("stem.conv.weight", "stem.conv"),
        ("final_conv.weight", "final_conv"),
        ("backbone.stages.3.2.skip_init.skip_gain", "backbone.stages.3.2"),
        ("weight", ""),
    ],
)
def test_the_layer_of_a_parameter(parameter, layer):
    assert layer_of(parameter) == layer


def test_stages_are_the_sums_and_maxima_of_their_layers():
    layers = {"stem.0": (8, 2, 0.1), "stages.0.0": (10, 5, 0.5), "stages.0.1": (30, 5, 2.0), "head.fc": (1, 0, 0.01)}
    assert by_stage(layers) == dict(
        clipped_by_stage={"stem": 0.25, "stages.0": 0.25, "head.fc": 0.0},
        largest_ratio={"stem": 0.1, "stages.0": 2.0, "head.fc": 0.01},
    )
    assert by_stage({}) == {}


def independently(model, grads, clipping, eps=1e-3):
    """Units, clipped ones and the largest ratio per layer, one unit after the other."""
    found = {}
    for name, parameter in model.named_parameters():
        if name == "head.fc.weight":  # the classifier is not clipped
            continue
        weight, gradient = parameter.detach().double(), grads[name].double()
        rows = zip(unitwise_norm(weight).flatten().tolist(), unitwise_norm(gradient).flatten().tolist(), strict=True)
        for weight_norm, gradient_norm in rows:
            ratio = gradient_norm / max(weight_norm, eps)
            units, clipped, largest = found.get(layer_of(name), (0, 0, 0.0))
            largest = max(largest, ratio if parameter.ndim > 1 else 0.0)  # of weights
            found[layer_of(name)] = (units + 1, clipped + (ratio > clipping), largest)
    return found


def test_lines_are_those_of_an_independent_count(tmp_path):
    model = network()
    run = trainer(tmp_path, model=model, train=dict(steps=1), optim=dict(ema_decay=None))
    batch = next(iter(run.task.train))
    run.model.train()
    run.task.loss(run.model(batch.images), batch).backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    layers = independently(model, grads, 0.02)
    run.fit()
    line = next(line for line in read_metrics(tmp_path) if line["kind"] == "train")
    norm = math.sqrt(sum(g.double().square().sum().item() for g in grads.values()))
    assert line["gradient_norm"] == pytest.approx(norm, rel=1e-5)  # float32
    after = math.sqrt(sum(p.detach().double().square().sum().item() for p in model.parameters()))
    assert line["parameter_norm"] == pytest.approx(after, rel=1e-5)
    assert line["clipped"] == sum(c for _, c, _ in layers.values()) / sum(n for n, _, _ in layers.values())
    (written,) = [json.loads(row) for row in (tmp_path / CLIPPING).read_text().splitlines()]
    assert written["step"] == 1
    assert list(written["layers"]) == list(layers)  # in the network's order
    for name, (units, clipped, ratio) in layers.items():
        # five decimals and four digits are written
        assert written["layers"][name] == pytest.approx([clipped / units, ratio], abs=6e-6, rel=6e-4), name
    assert line["clipped_by_stage"]["stages.0"] == written["layers"]["stages.0.0"][0]
    assert 0 < line["clipped"] < 1


def test_without_clipping_there_are_no_such_lines(tmp_path):
    trainer(tmp_path, train=dict(steps=1), optim=dict(clipping=None)).fit()
    line = next(line for line in read_metrics(tmp_path) if line["kind"] == "train")
    assert line["clipped"] is None
    assert line["gradient_norm"] > 0
    assert not {"clipped_by_stage", "largest_ratio"} & line.keys()
    assert not (tmp_path / CLIPPING).exists()


def test_a_resumed_run_writes_each_line_once(tmp_path):
    trainer(tmp_path, train=dict(steps=6, save_every=1)).fit()
    run = Run(tmp_path, {})
    run.drop_after(4)
    steps = [json.loads(row)["step"] for row in (tmp_path / CLIPPING).read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_the_environment_is_written_and_keeps_the_first_start(tmp_path):
    run = trainer(tmp_path, train=dict(steps=1))
    run.fit()
    first = json.loads((tmp_path / ENVIRONMENT).read_text())
    assert first["torch"] == torch.__version__
    assert first["device"] == "cpu"
    assert all(isinstance(value, str) for value in first.values())
    run.run.describe({**first, "started": "later"})
    again = json.loads((tmp_path / ENVIRONMENT).read_text())
    assert (again["started"], again["resumed"]) == (first["started"], "later")


def test_tensorboard_has_the_numbers_of_the_lines(tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder):
            assert folder == str(tmp_path / BOARD)

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def flush(self):
            pass

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", type(sys)("tensorboard"))
    sys.modules["torch.utils.tensorboard"].SummaryWriter = Writer
    run = Run(tmp_path, {}, trackers=["tensorboard"])
    run.log(kind="train", step=3, loss=1.5, accuracy=None, clipped_by_stage={"stem": 0.5})
    assert written == [("train/loss", 1.5, 3), ("train/clipped_by_stage/stem", 0.5, 3)]


def test_tensorboard_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match=r"train\.tensorboard \(=true\) needs .*normfree\[tensorboard\]"):
        Run(tmp_path, {}, trackers=["tensorboard"])


def test_time_left_is_steps_left_times_the_mean_step(tmp_path):
    trainer(tmp_path, task=classification(), train=dict(steps=4, log_every=1)).fit()
    left = [line["seconds_left"] for line in read_metrics(tmp_path) if line["kind"] == "train"]
    assert left[-1] == 0.0
    assert all(value >= 0 for value in left)
