"""One step of differentially private training (DP-SGD): each image's gradient clipped, their sum with noise."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..data import Batch, Loader, PoissonBatches
from ..data.poisson import seed_of
from ..errors import UsageError
from ..optim import ClipStatistics, OptimConfig
from ..private import ExamplePasses, Ledger, PrivateConfig, add_noise_, refuse_batch_norm, verify
from .config import TrainConfig
from .distributed import Replicas
from .step import StepResult, TrainStep, autocast


class PrivateStep(TrainStep):
    """DP-SGD (Abadi et al. 2016, arXiv:1607.00133), with the mean over views of De et al. 2022 (arXiv:2204.13650).

    The gradient of each image, a mean over its ``augmentations`` views, is shortened to ``max_norm``; the sum over the
    batch gets noise of ``noise_multiplier * max_norm`` once, in the main process, and is divided by the batch size that
    is expected, not by the one that was drawn. What follows, AGC, momentum and averaging, sees no image.

    The first batch with two images is used to check the gradients of single images against ordinary backward passes.

    Args:
        ledger: with the settings; each step is recorded in it.
        batch_size: the expected number of images in a batch.
        seed: of the noise.
        options: as of :class:`.TrainStep`.
    """

    takes_empty = True  # a batch without images is a step of noise alone; to leave it out would tell of it

    def __init__(
        self, model: nn.Module, losses: Any, optimizer: torch.optim.Optimizer, *, ledger: Ledger, batch_size: int,
        seed: int, **options: Any,
    ):  # fmt: skip
        super().__init__(model, losses, optimizer, **options)
        self.ledger, self.batch_size, self.seed = ledger, batch_size, seed
        self.views, self.verified = ledger.config.augmentations, False
        self.params = [p for p in model.parameters() if p.requires_grad]

    def _replicate(self) -> nn.Module:
        """The network itself: gradients are exchanged once, behind the clipping."""
        return self.model

    def _step(self, batch: Batch, lr: float, images: int) -> StepResult:
        if not self.verified and len(whole := _whole_images(batch, self.views)) >= 2 * self.views:
            self._verify(whole)
        return super()._step(batch, lr, images)

    def _verify(self, batch: Batch) -> None:
        parts = [batch.part(slice(begin * self.views, end * self.views)) for begin, end in ((0, 2), (0, 1), (1, 2))]
        pairs = [(part.inputs, self._loss(part)) for part in parts]
        self.verified = verify(self.model, pairs[0], pairs[1:], views=self.views)

    def _loss(self, piece: Batch) -> Any:
        return lambda output: self.losses.loss(output, piece)

    def _pieces(self, batch: Batch) -> list[Batch]:
        """Micro-batches of whole images with all their views."""
        batch = _whole_images(batch, self.views)
        size = self.micro_batch if isinstance(self.micro_batch, int) else max(1, len(batch))
        return list(batch.pieces(max(1, size // self.views) * self.views))

    def _largest_micro_batch(self, batch: Batch) -> Any:
        """Measured with the first batch of which every process has an image."""
        enough = min(self.replicas.gather(len(batch))) >= self.views
        return super()._largest_micro_batch(batch) if enough else self.micro_batch

    def _backward(self, piece: Batch, images: int, last: bool, ascent: Batch | None = None) -> tuple[Tensor, Tensor]:
        """Add a micro-batch's clipped gradients to the parameters'."""
        piece = _whole_images(piece, self.views)
        if not len(piece):
            return torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        with autocast(self.device, self.precision):
            passes = ExamplePasses(self.model, piece.inputs, views=self.views)
        loss = passes.seed(self._loss(piece))
        norms = passes.norms()
        if not norms.isfinite().all():
            return loss * torch.nan, self.losses.correct(passes.output.detach(), piece)  # the sum of losses tells all
        passes.accumulate((self.ledger.config.max_norm / norms).clamp(max=1.0))
        return loss * (len(piece) / images), self.losses.correct(passes.output.detach(), piece)

    def _update(self) -> ClipStatistics:
        """Sum over the processes, with noise; then as without privacy."""
        for p in self.params:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        gradients = [p.grad for p in self.params if p.grad is not None]
        if self.replicas.main:
            config = self.ledger.config
            seed = None if config.secure else seed_of("noise", self.seed, self.ledger.steps)
            add_noise_(gradients, self.ledger.noise * config.max_norm, seed)
        for gradient in gradients:
            if self.replicas.world > 1:
                dist.all_reduce(gradient)
            gradient /= self.batch_size
        statistics = super()._update()
        self.ledger.record()
        return statistics


def _whole_images(batch: Batch, views: int) -> Batch:
    """Without the images that lack some of their views, because these could not be read."""
    if views == 1 or not len(batch):
        return batch
    _, counts = batch.indices.unique_consecutive(return_counts=True)
    if bool((counts == views).all()):
        return batch
    kept = (counts == views).repeat_interleave(counts)
    return batch.chosen(kept.nonzero().flatten())


def ledger_of(
    private: PrivateConfig | None, model: nn.Module, loader: Loader, train: TrainConfig, optim: OptimConfig
) -> Ledger | None:
    """The budget of a run; None without privacy.

    Raises:
        UsageError: a setting or the network contradicts private training, or batches are not drawn by Poisson sampling.
    """
    if private is None or not private.on:
        return None
    batches = loader.batches
    if not isinstance(batches, PoissonBatches) or batches.views != private.augmentations:
        raise UsageError("private training needs batches by Poisson sampling, with private.augmentations views")
    refuse_with_privacy(train, optim, secure=private.secure)
    refuse_batch_norm(model)
    return Ledger(private, loader.rate)


def keep_budget(ledger: Ledger | None, replicas: Replicas, steps: int) -> None:
    """Refuse, in all processes, steps that the budget does not allow; the main one computes it.

    Raises:
        UsageError: it would be exceeded.
    """
    if ledger is None:
        return
    failure = None
    if replicas.main:
        try:
            ledger.check(max(0, steps))
        except UsageError as error:
            failure = error
    failure = replicas.from_main(failure)
    if failure is not None:
        raise failure


def privacy_of(ledger: Ledger | None, replicas: Replicas) -> dict[str, float]:
    """What is spent of the budget, for the metrics; nothing without privacy."""
    if ledger is None:
        return {}
    epsilon = replicas.from_main(ledger.epsilon() if replicas.main else None)
    return dict(epsilon=epsilon, delta=ledger.config.delta)


def refuse_with_privacy(train: TrainConfig, optim: OptimConfig, *, secure: bool) -> None:
    """Refuse settings that contradict private training.

    Raises:
        UsageError: one is set; the message names it, and says why.

    Example:
        >>> refuse_with_privacy(TrainConfig(compile=True), OptimConfig(), secure=False)
        Traceback (most recent call last):
            ...
        normfree.errors.UsageError: train.compile (=True) is not for private training: ...
    """
    reasons: dict[str, tuple[Any, str | None]] = {
        "optim.sam_rho": (optim.sam_rho, "the ascent looks at the images once more, without noise"),
        "train.compile": (train.compile, "the gradients of single images are found while the network runs"),
        "train.activation_checkpointing": (
            train.activation_checkpointing,
            "blocks that run again in the backward pass do not tell the gradients of single images",
        ),
        "train.across_epochs": (train.across_epochs, "each batch is drawn by itself, and there are no epochs to cut"),
        "train.skip_nonfinite": (train.skip_nonfinite, "a step that is left out tells of its images"),
        "train.parallel": (
            train.parallel if train.parallel == "fsdp" else None,
            "every process needs the whole network; take ddp",
        ),
        "train.precision": (
            train.precision if train.precision == "float16" or (secure and train.precision != "float32") else None,
            "float32 alone keeps what private.secure promises"
            if secure
            else "steps whose gradients overflow would be left out, which tells of their images",
        ),
    }
    for name, (value, reason) in reasons.items():
        if value:
            raise UsageError(f"{name} (={value}) is not for private training: {reason}")
