"""The ``optim`` section of a recipe, and the optimizer it describes."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from ..errors import UsageError
from ..nn import Role
from .clip import check_kind
from .clip_update import PLACES
from .ema import EMA
from .groups import param_groups
from .imported import is_import
from .layer_decay import decayed_groups
from .optimizers import OPTIMIZERS, Shared, named, options_of
from .parts import check_parts
from .pull import WeightPull, check_strength, pulled_layers
from .sam import SAM, Ascent
from .schedule import warmup_cosine, warmup_drops, warmup_exp_decay
from .schedule_free import ScheduleFreeAverage

MAX_NUMBER = 1e20  # beyond, float32 overflows


@dataclass
class OptimConfig:
    """Optimizer, clipping, schedule of the learning rate, weight averaging.

    Args:
        name: the optimizer: sgd, with momentum; lars, whose steps have a fixed ratio to the weights; muon, whose
            steps of weights are orthogonalized; rmsprop, as TensorFlow computes it; adam; adamw, whose weight decay is
            decoupled; lamb, adam with steps of a fixed ratio to the weights; laprop, which normalizes gradients first;
            schedulefree_sgd and schedulefree_adamw, whose learning rate is constant after the warm-up, and whose own
            average is evaluated (ema_decay must be null). Or the class of another optimizer, "package.module:Class",
            on the command line and from Python; its options are the arguments of the class, its momentum included.
        options: of the optimizer alone. lars: {trust_coefficient: 0.001, eps: 0, scaled: [weight, classifier, gain,
            bias, skip_gain]}, the roles whose steps are scaled; muon: {relative: true, steps: 5, orthogonalized:
            [weight]}, the roles whose steps are orthogonalized (the others take those of sgd); rmsprop: {decay: 0.9,
            eps: 0.001}; adam, adamw and laprop: {betas: [0.9, 0.999], eps: 1.0e-8}; lamb: {betas: [0.9, 0.999], eps:
            1.0e-6, scaled: [weight, classifier]}; schedulefree_sgd: {r: 0}; schedulefree_adamw: {betas: [0.9, 0.999],
            eps: 1.0e-8, r: 0}.
        lr: peak learning rate; with lr_reference_batch, the one for that batch size.
        lr_reference_batch: the learning rate is scaled by batch_size / lr_reference_batch; null does not scale.
        lr_factors: factors of the learning rate by the role of parameters (weight, classifier, gain, bias, skip_gain):
            {gain: 0.3, bias: 0.3}, for example. Roles that are not named have the factor 1.
        layer_decay: for fine-tuning, a factor of the learning rate for each layer from the classifier down, 0.75 for
            example: the classifier has the whole rate, the last block 0.75 of it, the one before 0.75 ** 2, and the
            stem the least. It multiplies lr_factors.
        lr_end: learning rate at the end of the cosine.
        lr_drops: instead of the cosine, the learning rate falls tenfold at each of these fractions of the run; [0.7,
            0.9] in the papers' segmentation.
        lr_decay: instead of the cosine, a factor by which the learning rate falls every lr_decay_epochs after the
            warm-up, 0.97 for example.
        lr_decay_epochs: epochs between two such falls, 2.4 for example.
        warmup_epochs: epochs in which the learning rate rises linearly from 0.
        warmup_steps: the same in steps; takes precedence.
        restarts: steps at which the cosine (or what replaces it) begins again at the peak, without warm-up, and lasts
            until the next one or the end (SGDR, arXiv:1608.03983).
        momentum: of sgd, lars, muon and rmsprop; the others have betas.
        nesterov: Nesterov's form of momentum. null: where the optimizer has it (sgd, lars and muon).
        weight_decay: of weights; gains, biases and skip gains are not decayed.
        weight_pull: the part of the way to its standardized weight that a weight goes after each step, above 0 and at
            most 1; only for networks with model.options.weight_scheme soft, which need it.
        clipping: threshold lambda of the clipping; of Adaptive Gradient Clipping 0.01 for batch 4096. null clips
            nothing.
        clipping_kind: what is clipped. "unit": Adaptive Gradient Clipping, each row of a weight by its own norm;
            "layer": each tensor by its norm; "norm": all gradients together, to the norm of the threshold.
        clip_on: "gradient", what the optimizer is given; or "update", what it does to the weights, as a part of the
            learning rate: |update| is at most lr * clipping * max(|weight|, clipping_eps). For optimizers such as adam,
            whose steps do not follow the length of the gradient.
        clipping_parts: parts of the network that are clipped (true), not clipped (false), or clipped with a threshold
            of their own, {stem: false, stages.0: 0.02, classifier: true} for example. A part is a module, a parameter,
            a pattern, or classifier, which is not clipped unless this says so. The most exact part counts.
        unclipped: parts that are not clipped, whatever clipping_parts says: ["*.bias", "*.gain"], for example.
        clipping_eps: lower bound of a unit's weight norm in the clipping.
        ema_decay: decay of the moving average of the weights; null keeps none.
        sam_rho: length of the ascent of Sharpness-Aware Minimization, 0.05 in the paper; null: none.
        sam_fraction: part of each micro-batch that the ascent sees.
        sam_ascent: whose gradient moves the weights for a micro-batch: "same", its own; "next", that of the next
            micro-batch of the step, to see that this is of no use.
        frozen: modules or parameters that are not trained, for example [stem, stages.0], or patterns: ["layer[12]",
            "*.gain"].
    """

    name: str = field(default="sgd", metadata={"one_of": OPTIMIZERS})
    options: dict[str, float | bool | str | tuple[float | str, ...]] = field(default_factory=dict)
    lr: float = 0.1
    lr_reference_batch: int | None = None
    lr_factors: dict[str, float] = field(default_factory=dict)
    layer_decay: float | None = None
    lr_end: float = 0.0
    lr_drops: tuple[float, ...] = ()
    lr_decay: float | None = None
    lr_decay_epochs: float | None = None
    warmup_epochs: float = 5.0
    warmup_steps: int | None = None
    restarts: tuple[int, ...] = ()
    momentum: float = 0.9
    nesterov: bool | None = None
    weight_decay: float = 2e-5
    weight_pull: float | None = None
    clipping: float | None = 0.01
    clipping_kind: Literal["unit", "layer", "norm"] = "unit"
    clip_on: Literal["gradient", "update"] = "gradient"
    clipping_parts: dict[str, float | bool] = field(default_factory=dict)
    unclipped: tuple[str, ...] = ()
    clipping_eps: float = 1e-3
    ema_decay: float | None = 0.99999
    sam_rho: float | None = None
    sam_fraction: float = 0.2
    sam_ascent: Ascent = "same"
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("lr", "lr_reference_batch", "lr_decay", "lr_decay_epochs", "clipping", "clipping_eps", "sam_rho"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= MAX_NUMBER:
                raise UsageError(f"optim.{name} (={value}) must be above 0 and at most {MAX_NUMBER:g}")
        for name in ("lr_end", "warmup_epochs", "warmup_steps", "weight_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= MAX_NUMBER:
                raise UsageError(f"optim.{name} (={value}) must be at least 0 and at most {MAX_NUMBER:g}")
        self._check_schedule()
        self._check_optimizer()
        roles = [role.value for role in Role]
        for role, factor in self.lr_factors.items():
            if role not in roles:
                raise UsageError(f"optim.lr_factors names {role!r}, which is not a role; roles are {', '.join(roles)}")
            if not 0 <= factor <= MAX_NUMBER:
                raise UsageError(f"optim.lr_factors.{role} (={factor}) must be at least 0 and at most {MAX_NUMBER:g}")
        if self.weight_pull is not None and not 0 < self.weight_pull <= 1:
            raise UsageError(f"optim.weight_pull (={self.weight_pull}) must be above 0 and at most 1")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise UsageError(f"optim.layer_decay (={self.layer_decay}) must be above 0 and at most 1")
        for name in ("momentum", "ema_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UsageError(f"optim.{name} (={value}) must be at least 0 and below 1")
        if not 0 < self.sam_fraction <= 1:
            raise UsageError(f"optim.sam_fraction (={self.sam_fraction}) must be above 0 and at most 1")

    def _check_schedule(self) -> None:
        if not all(0 < a < 1 for a in self.lr_drops) or list(self.lr_drops) != sorted(set(self.lr_drops)):
            raise UsageError(f"optim.lr_drops (={list(self.lr_drops)!s:.80}) must be rising numbers between 0 and 1")
        if (self.lr_decay is None) != (self.lr_decay_epochs is None):
            raise UsageError("optim.lr_decay and optim.lr_decay_epochs must both be set, or both be null")
        instead = "optim.lr_drops" if self.lr_drops else None if self.lr_decay is None else "optim.lr_decay"
        if self.lr_drops and self.lr_decay is not None:
            raise UsageError("optim.lr_drops and optim.lr_decay both say how the learning rate falls; leave out one")
        if instead and self.lr_end:
            raise UsageError(f"optim.lr_end (={self.lr_end}) is the end of the cosine, which {instead} replaces")
        if not all(step > 0 for step in self.restarts) or list(self.restarts) != sorted(set(self.restarts)):
            raise UsageError(f"optim.restarts (={list(self.restarts)!s:.80}) must be rising steps from 1 on")

    def _check_optimizer(self) -> None:
        try:
            options_of(self.name, self.options)
            check_kind(self.clipping_kind)
            if self.clip_on not in PLACES:
                raise UsageError(f"clip_on (={self.clip_on!r}) must be one of {', '.join(PLACES)}")
            check_parts(self.clipping_parts, self.clipping_kind)
        except UsageError as error:
            raise UsageError(f"optim.{error}") from error
        if self.nesterov and not named(self.name).nesterov:
            raise UsageError(f"optim.nesterov (=true) must be false or null: {self.name} has no such form of momentum")
        if named(self.name).schedule_free:
            self._check_schedule_free()
        if self.nesterov and self.momentum == 0:
            raise UsageError("optim.nesterov (=true) needs optim.momentum above 0")

    def _check_schedule_free(self) -> None:
        unset = dict(clip_on="gradient", ema_decay=None, lr_decay=None, lr_end=0, lr_drops=(), restarts=())
        for name, value in unset.items():
            if getattr(self, name) != value:
                wanted = json.dumps(value)
                raise UsageError(
                    f"optim.{name} (={getattr(self, name)}) must be {wanted} with optim.name {self.name}, which has a "
                    "constant learning rate and its own average"
                )
        if self.name == "schedulefree_sgd" and self.momentum == 0:
            raise UsageError(f"optim.momentum (=0) must be above 0 with optim.name {self.name}")

    @property
    def clips(self) -> bool:
        """Whether anything is clipped."""
        return self.clipping is not None or any(type(value) is not bool for value in self.clipping_parts.values())

    def peak_lr(self, batch_size: int) -> float:
        return self.lr * batch_size / self.lr_reference_batch if self.lr_reference_batch else self.lr

    def lr_at(self, step: int, *, batch_size: int, total_steps: int, steps_per_epoch: float) -> float:
        """Learning rate of a step; a warm-up longer than the run is cut to it, or to the first restart."""
        warmup = self.warmup_steps if self.warmup_steps is not None else self.warmup_epochs * steps_per_epoch
        start = max((restart for restart in self.restarts if restart <= step), default=0)
        end = min((restart for restart in self.restarts if restart > step), default=total_steps)
        step, total_steps = step - start, min(end, total_steps) - start
        if start:
            warmup = 0
        options = dict(peak=self.peak_lr(batch_size), total_steps=total_steps, warmup_steps=min(warmup, total_steps))
        if self.lr_drops or named(self.name).schedule_free:
            return warmup_drops(step, **options, drops=self.lr_drops)
        if self.lr_decay is not None and self.lr_decay_epochs is not None:
            del options["total_steps"]
            every = self.lr_decay_epochs * steps_per_epoch
            return warmup_exp_decay(step, **options, decay_steps=every, factor=self.lr_decay)
        return warmup_cosine(step, **options, end=self.lr_end)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer over the model's parameter groups, learning rate 0 until the first step sets it."""
        try:
            groups = param_groups(
                model,
                weight_decay=self.weight_decay,
                clipping=self.clipping,
                clipping_kind=self.clipping_kind,
                clipping_parts=self.clipping_parts,
                unclipped=self.unclipped,
            )
        except UsageError as error:
            ours = str(error).startswith(("unclipped", "clipping_parts"))
            raise UsageError(f"optim.{error}" if ours else str(error)) from error
        for group in groups:
            group["lr_factor"] = self.lr_factors.get(group["name"], 1.0)
        if self.layer_decay is not None:
            groups = self._by_depth(groups, model)
        chosen = named(self.name)
        nesterov = chosen.nesterov and self.momentum > 0 if self.nesterov is None else self.nesterov
        try:
            return chosen.build(groups, Shared(self.momentum, nesterov), options_of(self.name, self.options))
        except UsageError as error:
            raise UsageError(f"optim.{error}" if is_import(self.name) else str(error)) from error

    def _by_depth(self, groups: list[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
        try:
            return decayed_groups(groups, model, self.layer_decay or 1.0)
        except UsageError as error:
            raise UsageError(f"optim.{error}") from error

    def build_average(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> EMA | None:
        """The average of the weights that is evaluated beside them, if there is any; updated after each step."""
        if named(self.name).schedule_free:
            return ScheduleFreeAverage(model, optimizer)
        return EMA(model, self.ema_decay) if self.ema_decay is not None else None

    def check_pull(self, model: nn.Module) -> None:
        """Raise UsageError if ``weight_pull`` does not fit the weight scheme of a network."""
        check_strength(pulled_layers(model), self.weight_pull, "optim.weight_pull")
        if pulled_layers(model) and self.clip_on == "update":
            raise UsageError(
                "optim.clip_on (=update) must be gradient: the weights of this network are also pulled to their "
                "standardized ones in each step"
            )
        if pulled_layers(model) and named(self.name).schedule_free:
            raise UsageError(
                f"optim.name (={self.name}) keeps weights that nothing would pull to their standardized ones; take "
                "another optimizer, or model.options.weight_scheme standardized"
            )

    def build_pull(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> WeightPull | None:
        """What follows the optimizer's steps, if the weight scheme of the network wants it."""
        self.check_pull(model)
        return WeightPull(optimizer, model, self.weight_pull) if pulled_layers(model) else None

    def build_sam(self, model: nn.Module) -> SAM | None:
        """Sharpness-Aware Minimization over the model's parameters, if there is any."""
        return (
            None if self.sam_rho is None else SAM(model.parameters(), self.sam_rho, self.sam_fraction, self.sam_ascent)
        )
