"""Networks, tasks and trainers small enough to train within a test."""

import types
from pathlib import Path
from typing import Any

import torch
from small_models import shake

import normfree
from normfree.data import DataConfig, Poisson, Source, digits
from normfree.data.sources import ArraySplit
from normfree.optim import OptimConfig
from normfree.tasks import Classification, TaskConfig
from normfree.training import Run, TrainConfig, Trainer, new_folder, read_metrics

OPTIONS = dict(depths=(1, 1, 1), widths=(16, 16, 32))
# the same network as options of `normfree train`, on the CPU wherever the tests run
FLAGS = ["--quiet", "--train.device", "cpu"]
FLAGS += ["--model.options.depths", "[1,1,1]", "--model.options.widths", "[16,16,32]"]


def network(**options) -> torch.nn.Module:
    """10 classes, one channel, every gain away from zero; no dropout, no stochastic depth."""
    return shake(normfree.create_model("nf_resnet26_small", num_classes=10, in_chans=1, **OPTIONS, **options))


def few_digits(train: int = 40, test: int = 20) -> Source:
    every = digits(1)
    splits = [
        ArraySplit(split.images[:n], split.labels[:n], split.prefix)
        for split, n in ((every.train, train), (every.test, test))
    ]
    return Source(*splits, every.classes)


def classification(
    source: Source | None = None,
    batch_size: int = 16,
    seed: int = 0,
    across_epochs: bool = False,
    poisson: Poisson | None = None,
    **task,
) -> Classification:
    data = DataConfig(channels=1, resize_margin=0, crop="shift", flip=False)
    config = TaskConfig(**{"label_smoothing": 0.1, **task})
    source = source or few_digits()
    options = dict(batch_size=batch_size, seed=seed, across_epochs=across_epochs, poisson=poisson)
    return Classification(source, config, data, image_size=8, test_size=8, **options)


class Scripted:
    """A task whose evaluations give the scores they are told, one after the other."""

    def __init__(self, scores: list[float]):
        self.task, self.scores = classification(), scores

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def metrics(self) -> Any:
        return types.SimpleNamespace(
            update=lambda output, batch: None, compute=lambda: dict(top1=self.scores.pop(0), loss=1.0)
        )


def trainer(
    folder: Path,
    *,
    task: Any = None,
    train: dict[str, Any] | None = None,
    optim: dict[str, Any] | None = None,
    model: torch.nn.Module | None = None,
    **options,
) -> Trainer:
    """40 digits in 2 steps of 16 per epoch; 6 steps, an evaluation every epoch."""
    train_config = TrainConfig(**{"batch_size": 16, "steps": 6, "log_every": 1, "device": "cpu", **(train or {})})
    optim_config = OptimConfig(**{"lr": 0.1, "warmup_epochs": 1, "clipping": 0.02, "ema_decay": 0.9, **(optim or {})})
    torch.manual_seed(train_config.seed)
    return Trainer(
        model or network(drop_rate=0.2, stochdepth_rate=0.1),
        task or classification(seed=train_config.seed),
        Run(new_folder("tiny", str(folder)), dict(classes=list("0123456789"))),
        train=train_config,
        optim=optim_config,
        progress=False,
        **options,
    )


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """Lines of a run's evaluations."""
    return [line for line in read_metrics(folder) if line["kind"] == "eval"]
