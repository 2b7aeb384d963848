"""Metrics for TensorBoard, Weights & Biases and MLflow, through their own clients, which are extras.

Where Weights & Biases and MLflow send them, and with which account, is said by their own environment variables and
files (``WANDB_MODE``, ``WANDB_PROJECT``, ``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME``, ...). Nothing of that is
read here or written into a run's folder, but for the number of the run there, which a resumed run goes on with.
"""

import importlib
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..errors import UsageError
from ..files import read_object, write_json

BOARD, IDS, PROJECT = "tensorboard", "trackers.json", "normfree"
MOST_PARAMS, MOST_LETTERS = 100, 500  # of a call of MLflow, and of a value
NEEDS = dict(
    tensorboard=("TensorBoard", "torch.utils.tensorboard"),
    wandb=("Weights & Biases", "wandb"),
    mlflow=("MLflow", "mlflow"),
)


class Tracker(Protocol):
    """What receives the numbers of a run."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Take the numbers of a line."""
        ...

    def end(self, state: str) -> None:
        """The run ended: "finished", "stopped" or "failed"."""
        ...


def opened(names: Sequence[str], folder: Path, recipe: Mapping[str, Any]) -> list[Tracker]:
    """The trackers of a run by their names: "tensorboard", "wandb", "mlflow".

    Args:
        recipe: sections of fields, which are shown as settings of the run.

    Raises:
        UsageError: a package is missing, or it cannot open the run.
    """
    kinds = dict(tensorboard=TensorBoard, wandb=WeightsAndBiases, mlflow=MLflow)
    settings = {f"{section}.{name}": value for section, fields in recipe.items() for name, value in fields.items()}
    trackers = list[Tracker]()
    for name in names:
        title, module = NEEDS[name]
        try:
            client = importlib.import_module(module)
        except ImportError as error:
            raise UsageError(f"train.{name} (=true) needs {title}: pip install 'normfree[{name}]'") from error
        try:
            trackers.append(kinds[name](client, folder, settings))
        except Exception as error:
            hint = "; WANDB_MODE=offline needs no account" if name == "wandb" else ""
            raise UsageError(f"train.{name} (=true): {title} cannot begin: {type(error).__name__}{hint}") from error
    return trackers


def _number_of(folder: Path, name: str, number: str | None = None) -> str | None:
    """The number of the run at a tracker, as an earlier start has noted it; with ``number`` note this one."""
    noted = read_object(folder / IDS)
    if number is not None:
        write_json(folder / IDS, {**noted, name: number})
        return number
    found = noted.get(name)
    return found if isinstance(found, str) else None


class TensorBoard:
    """Writes into the folder ``tensorboard`` of the run."""

    def __init__(self, client: Any, folder: Path, settings: Mapping[str, Any]):
        self.writer = client.SummaryWriter(str(folder / BOARD))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def end(self, state: str) -> None:
        pass


class WeightsAndBiases:
    """A run of Weights & Biases; its own files are in the folder ``wandb`` of the run."""

    def __init__(self, client: Any, folder: Path, settings: Mapping[str, Any]):
        number = _number_of(folder, "wandb") or _number_of(folder, "wandb", uuid.uuid4().hex[:12])
        self.run = client.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.resolve().name,
            id=number,
            resume="allow",
            dir=str(folder),
            config=dict(settings),
            settings=client.Settings(console="off", save_code=False),
        )

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.run.log(dict(numbers), step=step)

    def end(self, state: str) -> None:
        self.run.finish(exit_code=int(state == "failed"))


class MLflow:
    """A run of MLflow."""

    STATUS = dict(finished="FINISHED", stopped="KILLED", failed="FAILED")

    def __init__(self, client: Any, folder: Path, settings: Mapping[str, Any]):
        self.entities, self.client = importlib.import_module("mlflow.entities"), client.MlflowClient()
        number = _number_of(folder, "mlflow")
        if number is not None:
            self.client.update_run(number, status="RUNNING")
            self.number = number
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(name)
        experiment = self.client.create_experiment(name) if found is None else found.experiment_id
        self.number = self.client.create_run(experiment, run_name=folder.resolve().name).info.run_id
        _number_of(folder, "mlflow", self.number)
        params = [self.entities.Param(key, str(value)[:MOST_LETTERS]) for key, value in settings.items()]
        for first in range(0, len(params), MOST_PARAMS):
            self.client.log_batch(self.number, params=params[first : first + MOST_PARAMS])

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        metrics = [self.entities.Metric(name, float(value), now, step) for name, value in numbers.items()]
        self.client.log_batch(self.number, metrics=metrics)

    def end(self, state: str) -> None:
        self.client.set_terminated(self.number, self.STATUS.get(state, "FAILED"))
