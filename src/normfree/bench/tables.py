"""The papers' tables of training speed, measured anew: how long a step takes beside that of a BatchNorm network."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torchvision
from torch import nn

from ..models import create_model, list_models, model_info
from .step import Measuring, image_batch, memory_format, training_step
from .timing import ProgressBar, Samples, alternate


@dataclass(frozen=True)
class Row:
    """A network beside another.

    Attributes:
        network, peer: names, ours or torchvision's.
        size, peer_size: side of their images, pixels.
        paper: time of a step over that of the peer, by the machine on which the authors measured.
    """

    network: str
    peer: str
    size: int
    peer_size: int
    paper: dict[str, float]


@dataclass(frozen=True)
class Table:
    """A table of one of the papers.

    Attributes:
        title: which.
        clipping: threshold of Adaptive Gradient Clipping in its training; None: no clipping.
    """

    title: str
    clipping: float | None
    rows: tuple[Row, ...]


def _resnets() -> tuple[Row, ...]:
    """Iterations per second of NF and BN at batch 16."""
    speeds = {50: (17.3, 16.42), 101: (10.4, 9.4), 152: (7.02, 5.57), 200: (5.22, 3.53), 288: (3.0, 2.25)}
    return tuple(
        Row(f"nf_resnet{depth}", f"bn_resnet{depth}", 224, 224, {"V100": bn / nf}) for depth, (nf, bn) in speeds.items()
    )


def _regnets() -> tuple[Row, ...]:
    """Iterations per second of NF-RegNet and EfficientNet at batch 16, at EfficientNet's sizes."""
    speeds = {224: (12.2, 5.23), 240: (9.06, 3.0), 260: (5.84, 2.22), 300: (4.49, 1.57), 380: (2.73, 0.94)}
    return tuple(
        Row(f"nf_regnet_b{i}", f"efficientnet_b{i}", size, size, {"V100": bn / nf})
        for i, (size, (nf, bn)) in enumerate(speeds.items())
    )


def _nfnets() -> tuple[Row, ...]:
    """Milliseconds of a step on TPUv3 and V100."""
    steps = {
        "nfnet_f0": (73.3, 56.7),
        "nfnet_f1": (158.5, 133.9),
        "nfnet_f2": (295.8, 226.3),
        "nfnet_f3": (532.2, 524.5),
    }
    peers = {"resnet50": (41.6, 35.3), "efficientnet_b0": (51.1, 44.8)}
    rows = []
    for name, (tpu, gpu) in steps.items():
        for peer, (their_tpu, their_gpu) in peers.items():
            paper = {"TPUv3": tpu / their_tpu, "V100": gpu / their_gpu}
            rows.append(Row(name, peer, model_info(name).train_size, 224, paper))
    return tuple(rows)


def _ablation() -> tuple[Row, ...]:
    """Milliseconds of a step on TPUv3, of NFNets and of the same with BatchNorm."""
    steps = {"f0": (73.3, 111.7), "f1": (158.5, 258.0), "f2": (295.8, 396.3), "f3": (532.2, 617.7)}
    rows = []
    for name, (nf, bn) in steps.items():
        size = model_info(f"nfnet_{name}").train_size
        rows.append(Row(f"nfnet_{name}", f"bn_nfnet_{name}", size, size, {"TPUv3": nf / bn}))
    return tuple(rows)


TABLES = {
    3: Table("NFNets, table 3: beside ResNet-50 and EfficientNet-B0", 0.01, _nfnets()),
    4: Table("NF-ResNets, table 4: beside ResNets with BatchNorm", None, _resnets()),
    5: Table("NF-ResNets, table 5: NF-RegNets beside EfficientNets", None, _regnets()),
    6: Table("NFNets, table 6: beside the same networks with BatchNorm", 0.01, _ablation()),
}


def network_of(name: str) -> nn.Module:
    """Ours by name, else torchvision's, freshly initialized."""
    return create_model(name) if name in list_models() else torchvision.models.get_model(name)


def measure(
    table: Table,
    *,
    batch_size: int,
    rounds: int,
    rows: int | None = None,
    size: int | None = None,
    precision: str = "float32",
    device: str = "cpu",
    channels_last: bool = True,
    compiled: bool = False,
    started: Callable[[Row], None] = lambda row: None,
    progress: ProgressBar = iter,
) -> Iterator[tuple[Row, Samples, Samples]]:
    """Steps of the networks of each row and of their peers, alternating.

    Args:
        rows: the first so many; None: all.
        size: side of all images instead of the table's; ratios then compare with the paper's only roughly.
        started: called with each row before it is measured.

    Raises:
        RunFailed: a network cannot be trained so; it is named.
    """
    for row in table.rows[:rows]:
        started(row)
        sides = {}
        for name, own in ((row.network, row.size), (row.peer, row.peer_size)):
            torch.manual_seed(0)
            measuring = Measuring(name, batch_size, size or own)
            with measuring:
                batch = image_batch(batch_size, size or own, device=device, channels_last=channels_last)
                model = network_of(name).to(device).to(memory_format=memory_format(channels_last))
                step = training_step(model, batch, clipping=table.clipping, precision=precision, compiled=compiled)
                sides[name] = measuring(step)
        ours, theirs = alternate(sides, rounds, device=device, warmup=1, progress=progress).values()
        yield row, ours, theirs
