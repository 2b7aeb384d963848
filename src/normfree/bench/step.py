"""The training step of any network, to be timed, and the memory that it takes."""

import warnings
from collections.abc import Callable
from contextlib import ContextDecorator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import Batch
from ..errors import RunFailed, UsageError
from ..optim import EMA, SAM, param_groups
from ..training import TrainStep
from ..training.memory import Allocated, no_memory
from ..training.step import autocast

LR, DECAY, AVERAGE = 1e-3, 2e-5, 0.9999


class CrossEntropy:
    """Classification, of (N, classes) logits."""

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(output.float(), batch.labels)

    def correct(self, output: Tensor, batch: Batch) -> Tensor:
        return (output.argmax(1) == batch.labels).sum()


def image_batch(
    count: int, size: int, *, channels: int = 3, classes: int = 1000, device: str = "cpu", channels_last: bool = True
) -> Batch:
    """Random images (count, channels, size, size), each of another class as long as there are such.

    >>> batch = image_batch(2, 32)
    >>> batch.images.shape, batch.labels
    (torch.Size([2, 3, 32, 32]), tensor([0, 1]))
    """
    images = torch.randn(count, channels, size, size).to(device, memory_format=memory_format(channels_last))
    labels = torch.arange(count, device=device) % classes
    return Batch(images, labels, labels)


@dataclass(frozen=True)
class Measuring(ContextDecorator):
    """An error inside becomes one line that names the network and its batch.

    Raises:
        RunFailed: instead of any error but UsageError, which says enough.
    """

    name: str
    count: int
    size: int

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UsageError) or not isinstance(error, Exception):  # Ctrl-C goes on as it is
            return
        where = f"batch {self.count} of {self.size} px"
        if no_memory(error):
            raise RunFailed(f"memory is too small for {self.name} on {where}; lower --batch or --size") from error
        # BatchNorm of one value, a gradient that is not finite, anything in somebody else's network
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise RunFailed(f"{self.name} cannot train on {where}: {reason}") from error


def memory_format(channels_last: bool) -> torch.memory_format:
    """Of maps in memory."""
    return torch.channels_last if channels_last else torch.contiguous_format


def training_step(
    model: nn.Module,
    batch: Batch,
    *,
    clipping: float | None = 0.01,
    precision: str = "float32",
    compiled: bool = False,
    micro_batch: int | None = None,
) -> Callable[[], object]:
    """Forward, cross-entropy, backward, clipping, SGD with Nesterov's momentum, moving average: one step per call.

    >>> step = training_step(normfree.create_model("nf_resnet50", num_classes=10), image_batch(2, 32, classes=10))
    >>> step().images
    2

    Args:
        model: any network of images; its own parameters' roles decide what is clipped and decayed, in a network that
            declares none nothing is clipped and weights of several dimensions are decayed.
    """
    step = train_step(model, clipping=clipping, precision=precision, compiled=compiled, micro_batch=micro_batch)
    return lambda: step(batch, LR)


def train_step(
    model: nn.Module,
    *,
    clipping: float | None,
    precision: str,
    compiled: bool,
    micro_batch: int | None = None,
    sam: bool = False,
) -> TrainStep:
    """The step of :func:`training_step`, to be called with a batch and :data:`LR`.

    Args:
        sam: with Sharpness-Aware Minimization, the ascent on a fifth of the batch (NFNets, appendix A.4).
    """
    try:
        with warnings.catch_warnings():  # which layer is the classifier is of no weight for its time
            warnings.simplefilter("ignore")
            groups = param_groups(model, weight_decay=DECAY, clipping=clipping)
    except UsageError:
        groups = [
            dict(params=[p for p in model.parameters() if (p.ndim > 1) == wide], weight_decay=decay, clipping=None)
            for wide, decay in ((True, DECAY), (False, 0.0))
        ]
    return TrainStep(
        model.train(),
        CrossEntropy(),
        torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True),
        ema=EMA(model, AVERAGE),
        sam=SAM(model.parameters()) if sam else None,
        micro_batch=micro_batch,
        precision=precision,
        compiled=compiled,
    )


def step_memory(model: nn.Module, batch: Batch, precision: str = "float32") -> tuple[int, int]:
    """Bytes kept after a forward pass, and the most that lives until the end of the backward pass, gradients included.

    Beside what there was before: weights, momentum, averages.

    >>> model = normfree.create_model("nf_resnet50", num_classes=10)
    >>> kept, most = step_memory(model, image_batch(1, 32, classes=10))
    >>> 0 < kept < most
    True
    """
    device = batch.images.device
    if device.type == "cuda":
        return _gpu_memory(model, batch, precision)
    with Allocated() as allocated, autocast(device, precision):
        loss = CrossEntropy().loss(model(batch.images), batch)
        kept = allocated.now
        loss.backward()
    model.zero_grad(set_to_none=True)
    return kept, allocated.most


def _gpu_memory(model: nn.Module, batch: Batch, precision: str) -> tuple[int, int]:
    device = batch.images.device
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with autocast(device, precision):
        loss = CrossEntropy().loss(model(batch.images), batch)
    kept = torch.cuda.memory_allocated(device) - before
    loss.backward()
    most = torch.cuda.max_memory_allocated(device) - before
    model.zero_grad(set_to_none=True)
    return kept, most
