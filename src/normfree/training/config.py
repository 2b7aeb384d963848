"""The ``train`` section of a recipe."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from ..errors import UsageError


@dataclass
class TrainConfig:
    """How long, how, and where to train.

    Args:
        batch_size: images per optimizer step.
        epochs: passes over the training images.
        steps: the length in optimizer steps instead; takes precedence.
        across_epochs: cut batches from the epochs one after the other, as the papers' released code: the last batch of
            an epoch is filled up with images of the next, and a run has images * epochs // batch_size steps. false:
            the images that do not fill a batch are left out, other ones each epoch.
        micro_batch: compute the gradient in pieces of so many images. This is exact, since no example depends on
            another; BatchNorm, though, normalizes over each piece. "auto" measures what fits into free memory. null:
            whole batches.
        activation_checkpointing: stages whose blocks keep only their input for the backward pass and are computed once
            more there, [0, 1] for example, or "all". null: none.
        recompute_weights: compute the standardized weights once more in the backward pass instead of keeping them:
            this saves as much memory as the weights take, for little time.
        compile: use torch.compile in training.
        eval_every: epochs between evaluations; there is always one at the end.
        patience: stop after so many evaluations in a row that are no better than the best one. null: never.
        save_every: steps between checkpoints beside those at evaluations. null: none.
        keep_every: keep the checkpoints of steps that are multiples of it. null: the last two and the best.
        log_every: steps between lines of metrics.jsonl.
        seed: of the initial weights, the order of the images and the augmentation.
        precision: "bfloat16" or "float16" computes activations and their gradients in it (float16 with a loss scale);
            parameters, standardization and loss stay float32.
        channels_last: memory layout of activations. null: channels last for bfloat16 on a CPU, where it is faster,
            except with fsdp.
        threads: CPU threads. Small networks are as fast with one, and less slowed by other programs. null: torch's
            choice.
        spp_every: steps between recordings of the signal propagation plot and the weights' spectra (spp.jsonl,
            spp.png). null: none.
        skip_nonfinite: how many steps in a row may be left out because their loss or gradient is not finite; at one
            more, the run stops.
        tensorboard: also write the metrics for TensorBoard.
        wandb: also send the metrics to Weights & Biases, as its environment variables say (WANDB_MODE, WANDB_PROJECT).
        mlflow: also send the metrics to MLflow, as its environment variables say (MLFLOW_TRACKING_URI).
        parallel: of several processes, "ddp" keeps the whole network in each, "fsdp" splits its parameters, gradients,
            momentum and averages by rows among them.
        device: "auto" takes CUDA where there is one, else the CPU.
    """

    batch_size: int = 64
    epochs: float = 30.0
    steps: int | None = None
    across_epochs: bool = False
    micro_batch: int | Literal["auto"] | None = None
    activation_checkpointing: tuple[int, ...] | Literal["all"] | None = None
    recompute_weights: bool = False
    compile: bool = False
    eval_every: float = 1.0
    patience: int | None = None
    save_every: int | None = None
    keep_every: int | None = None
    log_every: int = 10
    seed: int = 0
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    channels_last: bool | None = None
    threads: int | None = None
    spp_every: int | None = None
    skip_nonfinite: int = 0
    tensorboard: bool = False
    wandb: bool = False
    mlflow: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.channels_last and self.parallel == "fsdp":
            raise UsageError("train.channels_last (=true) must be false with train.parallel fsdp, which splits by rows")
        for name in (
            "batch_size",
            "steps",
            "micro_batch",
            "log_every",
            "patience",
            "threads",
            "spp_every",
            "save_every",
            "keep_every",
        ):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise UsageError(f"train.{name} (={value}) must be at least 1")
        if (self.threads or 0) > 1024:
            raise UsageError(f"train.threads (={self.threads}) must be at most 1024")
        for name in ("epochs", "eval_every"):
            if not 0 < getattr(self, name) <= 1e9:
                raise UsageError(f"train.{name} (={getattr(self, name)}) must be above 0 and at most 1e9")
        if self.skip_nonfinite < 0:
            raise UsageError(f"train.skip_nonfinite (={self.skip_nonfinite}) must be at least 0")
        if abs(self.seed) >= 2**40:
            raise UsageError(f"train.seed (={self.seed}) must be below 2**40")

    @property
    def trackers(self) -> list[str]:
        """Names of what gets the metrics beside the run's files."""
        return [name for name in ("tensorboard", "wandb", "mlflow") if getattr(self, name)]

    def total_steps(self, steps_per_epoch: Fraction | int) -> int:
        """Steps of the run; an epoch may have a fractional number of steps."""
        if self.steps is not None:
            return self.steps
        if self.across_epochs:
            return max(1, math.floor(Fraction(self.epochs) * steps_per_epoch))
        return max(1, round(self.epochs * int(steps_per_epoch)))
