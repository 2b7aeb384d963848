"""The same training in one process and in several, for the tests to compare."""

import contextlib
import datetime
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_models import shake
from tiny_runs import OPTIONS, few_digits

import normfree
from normfree.data import DataConfig, Poisson, Source
from normfree.data.decode import UnreadableImage
from normfree.data.detection import SceneObjects
from normfree.data.scenes import CLASSES, SceneSplit
from normfree.data.sources import ArraySplit
from normfree.models import depth_estimator, detector, segmenter
from normfree.optim import OptimConfig
from normfree.optim.sharded import whole
from normfree.private import PrivateConfig
from normfree.tasks import Classification, Depth, Detection, MultiLabel, Regression, Segmentation, TaskConfig
from normfree.training import Replicas, Run, TrainConfig, Trainer, find_checkpoint
from normfree.training.checkpoints import read_state, read_tensors
from normfree.training.train_state import capture


@dataclass(frozen=True)
class Plan:
    """A run: what differs from the usual one."""

    folder: str
    train: dict[str, Any] = field(default_factory=dict)
    optim: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64
    images: tuple[int, int] = (45, 20)
    resume: bool = False
    poison: tuple[int, int] | None = None  # (rank, step) whose images turn to NaN
    bad_gradient: tuple[int, int] | None = None  # (rank, step) in which one row of one parameter's gradient is NaN
    bad_loss: tuple[int, int] | None = None  # (rank, step) whose loss is infinite
    unreadable: tuple[int, ...] = ()
    task: str = "classification"
    network: dict[str, Any] = field(default_factory=dict)
    private: dict[str, Any] | None = None  # settings of private training, with a noise multiplier


class Damaged:
    def __init__(self, split, indices):
        self.split, self.indices = split, indices

    def __len__(self):
        return len(self.split)

    def __getattr__(self, name):
        return getattr(self.split, name)

    def image(self, index):
        if index in self.indices:
            raise UnreadableImage(f"{self.split.name(index)}: broken")
        return self.split.image(index)


class InfiniteLoss:
    """A task whose loss is infinite; its gradient is that of the task."""

    def __init__(self, task):
        self.task = task

    def __getattr__(self, name):
        return getattr(self.task, name)

    def loss(self, output, batch):
        return self.task.loss(output, batch) + float("inf")


@contextlib.contextmanager
def bad_gradient(model: torch.nn.Module, there: bool) -> Iterator[None]:
    """One row of the gradient of one parameter is NaN in this process."""
    handles = []

    def poke(gradient):
        changed = gradient.clone()
        changed[-1] = float("nan")
        return changed

    def at_forward(module, args):  # a sharded parameter is gathered by now: another tensor, the one that has a gradient
        handles.append(module.weight.register_hook(poke))

    if there:
        handles.append(model.stages[1][0].conv1.register_forward_pre_hook(at_forward))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class WithVectors(ArraySplit):
    """Digits with two numbers, or with the classes 0 and 1, each of which an image may have."""

    def target(self, index):
        label = self.label(index)
        return torch.tensor([float(label % 2), float(label > 4)])


def digits_task(plan: Plan, options: dict[str, Any]) -> tuple[torch.nn.Module, Any, Source]:
    """A small network, and its task on a few digits."""
    classes = 10 if plan.task == "classification" else 2
    model = shake(
        normfree.create_model("nf_resnet26_small", num_classes=classes, in_chans=1, **OPTIONS, **plan.network)
    )
    source = few_digits(*plan.images)
    data = DataConfig(**{"channels": 1, "resize_margin": 0, "crop": "shift", "flip": False, **plan.data})
    sizes = dict(image_size=8, test_size=8)
    if classes == 2:
        splits = (WithVectors(split.images, split.labels, split.prefix) for split in (source.train, source.test))
        source = Source(*splits, ["odd", "large"])
        made, config = dict(
            multi=(MultiLabel, TaskConfig(labels="multi")), numbers=(Regression, TaskConfig("regression"))
        )[plan.task]
        return model, made(source, config, data, **sizes, **options), source
    source = Source(Damaged(source.train, plan.unreadable), source.test, source.classes)
    return model, Classification(source, TaskConfig(label_smoothing=0.1), data, **sizes, **options), source


def scenes_task(plan: Plan, options: dict[str, Any]) -> tuple[torch.nn.Module, Any, Source]:
    """The same of segmentation, depth or detection, on scenes of 32 pixels."""
    if plan.task == "detection":
        return objects_task(plan, options)
    backbone = normfree.create_model("nf_resnet26_small", num_classes=0, output_stride=8, **OPTIONS)
    kind, classes = dict(segmentation=("mask", list(CLASSES)), depth=("depth", []))[plan.task]
    splits = [SceneSplit(count, 32, 3, part, kind) for part, count in enumerate(plan.images)]
    source = Source(*splits, classes)
    data = DataConfig(image_size=32, test_size=32, crop="none", **plan.data)
    if plan.task == "depth":
        return shake(depth_estimator(backbone, width=8)), Depth(source, TaskConfig("depth"), data, **options), source
    task = Segmentation(source, TaskConfig("segmentation"), data, **options)
    return shake(segmenter(backbone, len(classes), width=8)), task, source


def objects_task(plan: Plan, options: dict[str, Any]) -> tuple[torch.nn.Module, Any, Source]:
    """The same of detection."""
    backbone = normfree.create_model("nf_resnet26_small", num_classes=0, stem="7x7-nopool", **OPTIONS)
    source = Source(*(SceneObjects(n, 32, 3, part, "masks") for part, n in enumerate(plan.images)), list(CLASSES[1:]))
    data = DataConfig(image_size=32, test_size=32, crop="none", **plan.data)
    model = shake(detector(backbone, len(source.classes), width=8, anchor_scale=4.0, proposals=8, regions=8))
    return model, Detection(source, TaskConfig("detection"), data, **options), source


def train(plan: Plan, replicas: Replicas) -> dict[str, Any]:
    """Train, and tell the sample sequence, the clipped fractions, the summary and what is in memory at the end."""
    torch.set_num_threads(1)
    config = TrainConfig(
        **{"batch_size": 10, "steps": 10, "log_every": 1, "device": "cpu", "eval_every": 2, **plan.train}
    )
    optim = OptimConfig(**{"lr": 0.1, "warmup_epochs": 1, "clipping": 0.02, "ema_decay": 0.9, **plan.optim})
    torch.manual_seed(0)
    options = dict(batch_size=config.batch_size, share=replicas.share)
    private = None if plan.private is None else PrivateConfig(**{"accountant": "rdp", **plan.private})
    if private is not None:
        options["poisson"] = Poisson(private.augmentations)
    model, task, source = (scenes_task if plan.task in ("segmentation", "depth", "detection") else digits_task)(
        plan, options
    )
    model.to(plan.dtype).register_forward_pre_hook(lambda module, args: (args[0].to(plan.dtype), *args[1:]))
    folder = Path(plan.folder)
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        model, task, Run(folder, dict(classes=source.classes), config.keep_every), train=config, optim=optim,
        progress=False,
        replicas=replicas, max_unreadable=len(plan.unreadable), private=private,
    )  # fmt: skip
    if plan.resume:
        trainer.resume(find_checkpoint(folder / "checkpoints")[0])
    seen, clipped, step = [], [], trainer.step.__class__.__call__

    class Noting(trainer.step.__class__):
        def __call__(self, batch, lr, images=None):
            seen.append(batch.indices.tolist())
            if plan.poison == (replicas.rank, trainer.state.step):
                batch.images[0, 0, 0, 0] = float("nan")
            self.losses = InfiniteLoss(task) if plan.bad_loss == (replicas.rank, trainer.state.step) else task
            with bad_gradient(model, plan.bad_gradient == (replicas.rank, trainer.state.step)):
                result = step(self, batch, lr, images)
            clipped.append(result.clipped)
            return result

    trainer.step.__class__ = Noting
    model.eval()
    try:
        summary, error = trainer.fit(), None
    except normfree.RunFailed as failed:
        summary, error = None, str(failed)
    parameters = {name: whole(p.detach()).clone() for name, p in model.named_parameters()}
    state = {name: files for name, files in capture(trainer.step, trainer.state)[0].items() if name != "random"}
    return dict(seen=seen, clipped=clipped, summary=summary, error=error, parameters=parameters, state=state)


def _process(rank: int, world: int, plans: dict[str, Plan], store: str) -> None:
    timeout = datetime.timedelta(hours=1)  # a loaded machine starts processes slowly
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timeout)
    replicas = Replicas(rank, world, rank, dist.new_group(backend="gloo"))
    torch.save({name: train(plan, replicas) for name, plan in plans.items()}, f"{store}.{rank}")
    dist.destroy_process_group()


def run(plans: dict[str, Plan], world: int, scratch: Path) -> dict[str, list[dict[str, Any]]]:
    """What each process tells, plan by plan; all plans go through the same processes, which take seconds to start."""
    if world == 1:
        return {name: [train(plan, Replicas())] for name, plan in plans.items()}
    store = scratch / f"store{world}"
    mp.spawn(_process, (world, plans, str(store)), nprocs=world)
    told = [torch.load(f"{store}.{rank}", weights_only=False) for rank in range(world)]
    return {name: [one[name] for one in told] for name in plans}


def saved(plan: Plan, name: str | None = None) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """Tensors and state of a run's last checkpoint, or of one by its name."""
    folder = Path(plan.folder) / "checkpoints"
    checkpoint = folder / name if name is not None else find_checkpoint(folder)[0]
    return {n: read_tensors(checkpoint, n) for n in ("weights", "ema", "momentum", "optimizer")}, read_state(checkpoint)


def close(a, b, limit):
    """Per tensor, by norm: single entries may cancel."""
    for name, tensors in a.items():
        assert tensors.keys() == b[name].keys()
        for key, tensor in tensors.items():
            assert (tensor - b[name][key]).norm() <= limit * max(tensor.norm(), 1e-3), (name, key)
