"""Metrics for Weights & Biases and MLflow: what fakes of their clients are told; where they are installed, offline."""

import json
import sys
import types

import pytest
from tiny_runs import FLAGS

from normfree import UsageError
from normfree.training import Run
from normfree.training.trackers import IDS

RECIPE = dict(recipe=dict(optim=dict(lr=0.5, lr_drops=[0.7]), train=dict(seed=3)))
SECRET = "f00dfeedf00dfeedf00dfeedf00dfeedf00dfeed"


@pytest.fixture
def wandb(monkeypatch):
    """A client that notes what it is told."""
    told = []

    def init(**options):
        told.append(("init", options))
        return types.SimpleNamespace(
            log=lambda numbers, step: told.append((step, numbers)),
            finish=lambda exit_code: told.append(("finish", exit_code)),
        )

    module = types.ModuleType("wandb")
    module.init, module.Settings = init, lambda **options: options
    monkeypatch.setitem(sys.modules, "wandb", module)
    return told


@pytest.fixture
def mlflow(monkeypatch):
    told = []

    class Client:
        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            told.append(("experiment", name))
            return "7"

        def create_run(self, experiment, run_name):
            told.append(("run", experiment, run_name))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))

        def update_run(self, number, status):
            told.append((number, status))

        def log_batch(self, number, metrics=(), params=()):
            told.append((number, [*metrics, *params]))

        def set_terminated(self, number, status):
            told.append((number, status))

    module, entities = types.ModuleType("mlflow"), types.ModuleType("mlflow.entities")
    module.MlflowClient = Client
    entities.Param = lambda key, value: (key, value)
    entities.Metric = lambda key, value, at, step: (key, value, step)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return told


def write(run):
    run.log(kind="train", step=3, loss=1.5, accuracy=None, clipped_by_stage={"stem": 0.5})
    run.log(kind="skipped", step=4, reason="the loss is nan")
    run.log(kind="end", step=4, state="finished", reason="")


def test_weights_and_biases(tmp_path, wandb, monkeypatch):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    write(Run(tmp_path, RECIPE, trackers=["wandb"]))
    options = wandb[0][1]
    assert options["config"] == {"optim.lr": 0.5, "optim.lr_drops": [0.7], "train.seed": 3}
    assert (options["project"], options["dir"], options["name"]) == ("normfree", str(tmp_path), tmp_path.name)
    assert wandb[1:] == [(3, {"train/loss": 1.5, "train/clipped_by_stage/stem": 0.5}), ("finish", 0)]
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    Run(tmp_path, RECIPE, trackers=["wandb"]).log(kind="end", step=4, state="failed", reason="")
    assert wandb[-2][1]["project"] == "mine"
    assert wandb[-2][1]["id"] == options["id"]  # a resumed run goes on
    assert wandb[-1] == ("finish", 1)


def test_mlflow(tmp_path, mlflow, monkeypatch):
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    write(Run(tmp_path, RECIPE, trackers=["mlflow"]))
    assert mlflow == [
        ("experiment", "normfree"),
        ("run", "7", tmp_path.name),
        ("r1", [("optim.lr", "0.5"), ("optim.lr_drops", "[0.7]"), ("train.seed", "3")]),
        ("r1", [("train/loss", 1.5, 3), ("train/clipped_by_stage/stem", 0.5, 3)]),
        ("r1", "FINISHED"),
    ]
    assert json.loads((tmp_path / IDS).read_text()) == {"mlflow": "r1"}
    del mlflow[:]
    Run(tmp_path, RECIPE, trackers=["mlflow"]).log(kind="end", step=4, state="stopped", reason="")
    assert mlflow == [("r1", "RUNNING"), ("r1", "KILLED")]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_what_is_missing_or_does_not_begin_is_one_line(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"^train\.{name} \(=true\) needs .*normfree\[{name}\]"):
        Run(tmp_path, {}, trackers=[name])
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))  # neither init nor a client
    monkeypatch.setitem(sys.modules, f"{name}.entities", types.ModuleType(name))
    with pytest.raises(UsageError, match=rf"^train\.{name} \(=true\): .* cannot begin: AttributeError"):
        Run(tmp_path, {}, trackers=[name])


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_run_offline_keeps_no_secret(normfree, tmp_path, monkeypatch, name):
    pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    for key, value in dict(WANDB_MODE="offline", WANDB_API_KEY=SECRET, MLFLOW_TRACKING_TOKEN=SECRET).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    result = normfree("train", *FLAGS, "--train.steps", "2", f"--train.{name}", "true", "--out", "run")
    assert result.code == 0, result.err
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert name in json.loads((tmp_path / "run" / IDS).read_text())
