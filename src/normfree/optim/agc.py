"""Clipping in front of an optimizer's step."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.amp import GradScaler
from torch.utils.hooks import RemovableHandle

from ..errors import UsageError
from .clip import agc_, as_groups
from .clip_statistics import ClipStatistics
from .clip_update import PLACES, UpdateClip

_OWN_KEYS = ("name", "clipping", "clipping_kind", "one_unit", "transposed")  # entries of a group that only AGC uses


class AGC:
    """Clips inside ``step`` of any torch optimizer.

    >>> model = nn.Linear(4, 2)
    >>> groups = param_groups(model, weight_decay=2e-5, clipping=0.01, roles={"weight": "weight"})
    >>> agc = AGC(torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True))
    >>> model(torch.ones(3, 4)).sum().backward()
    >>> statistics = agc.step()  # optimizer.step() and scaler.step(optimizer) clip, too
    >>> statistics.fraction
    {'weight': 1.0, 'bias': 1.0}

    A hook before the optimizer's own step: weight decay and momentum see clipped gradients, as in the released code.
    The gradients of a closure are clipped, too.

    The threshold of a step is ``group["clipping"]``, which may be changed at any time. Once this object exists,
    ``optimizer.load_state_dict`` does not change the thresholds and names of the groups. Without it, torch takes both
    from the state, like ``lr``. So create this object first, then load.

    An optimizer has one AGC. A second one replaces the first, with a warning.

    A deep copy of the optimizer or of this object clips as the original does, and so does this object after pickling.
    An optimizer that is pickled alone comes back without its hooks; wrap it again.

    Args:
        optimizer: its groups have a ``clipping``, see :func:`param_groups`. It may be a wrapper with the attribute
            ``optimizer``, as Accelerate's.
        clipping: threshold of the groups without one.
        kind: of the groups without ``clipping_kind``, see :func:`agc_`.
        eps: see :func:`agc_`.
        scaler: the GradScaler in use, if any; gradients that it has not unscaled are refused.
        on: "gradient"; or "update": clips the change of the weights in ``step`` to ``lr * clipping * max(|W_i|, eps)``,
            for optimizers such as Adam, whose updates do not follow the length of the gradient. Momentum and decay of
            weights are parts of the update. It keeps a copy of the clipped weights during the step.
        error_if_nonfinite: first check every gradient norm; raise and change nothing if one is not finite (waits for
            the device once per step).

    Attributes:
        statistics: of the last step; a step that the GradScaler skips does not change them.

    Raises:
        UsageError: not an optimizer; parameters that :func:`agc_` refuses; in ``step``, gradients still multiplied by
            the loss scale.
        NotFinite: in ``step``, see ``error_if_nonfinite``.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        clipping: float | None = None,
        *,
        kind: str = "unit",
        on: str = "gradient",
        eps: float = 1e-3,
        scaler: GradScaler | None = None,
        error_if_nonfinite: bool = False,
    ):
        as_groups(own_optimizer(optimizer).param_groups, clipping, kind)
        if on not in PLACES:
            raise UsageError(f"on (={on!r}) must be one of {', '.join(PLACES)}")
        self.optimizer, self.clipping, self.kind, self.eps, self.scaler = optimizer, clipping, kind, eps, scaler
        self.on, self.error_if_nonfinite = on, error_if_nonfinite
        self.statistics = ClipStatistics()
        self._attach()

    def step(self, closure: Callable[[], Any] | None = None) -> ClipStatistics:
        """Clip the gradients, then step; returns statistics of the clipping."""
        self.optimizer.step(closure) if closure is not None else self.optimizer.step()
        return self.statistics

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def remove(self) -> None:
        """Remove the hooks; the optimizer then steps without clipping."""
        for hook in self._hooks:
            hook.remove()
        if self._hooks:
            own_optimizer(self.optimizer).__dict__.pop("__deepcopy__", None)
        self._hooks, self.statistics = [], ClipStatistics()

    def clip(self) -> ClipStatistics:
        """Clip the gradients without a step.

        Raises:
            UsageError: updates are clipped, which only a step has.
        """
        if self.on == "update":
            raise UsageError("clip() is for on='gradient'; with on='update', step() clips what it changes")
        self._check_unscaled()
        groups, nonfinite = self.optimizer.param_groups, self.error_if_nonfinite
        self.statistics = agc_(groups, self.clipping, self.eps, kind=self.kind, error_if_nonfinite=nonfinite)
        return self.statistics

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        target, *others = args  # the optimizer, and perhaps the closure
        closure = others[0] if others else kwargs.get("closure")
        if closure is None:
            self._prepare()
            return None

        def clipped() -> Any:
            with torch.enable_grad():
                loss = closure()
            self._prepare()
            return loss

        return (target, clipped), {k: v for k, v in kwargs.items() if k != "closure"}

    def _prepare(self) -> None:
        """Clip the gradients, or note the weights whose update is to be clipped."""
        if self.on == "gradient":
            self.clip()
            return
        self._check_unscaled()
        groups = own_optimizer(self.optimizer).param_groups
        unclipped = [group | dict(clipping=None) for group in groups]
        self._gradients = agc_(unclipped, error_if_nonfinite=self.error_if_nonfinite)
        self._update = UpdateClip(groups, self.clipping)

    def _after_step(self, *args: Any) -> None:
        if self._update is not None:
            clipped = self._update.clip(self.clipping, self.eps, self.kind)
            self.statistics = ClipStatistics(self._gradients.gradient_norm, clipped.groups)
            self._update = None

    def _check_unscaled(self) -> None:
        optimizer = own_optimizer(self.optimizer)
        scaled = getattr(optimizer, "grad_scale", None) is not None  # a fused optimizer would unscale later
        if self.scaler is not None and self.scaler.is_enabled():
            scaled |= not _unscaled(self.scaler, optimizer)
        if scaled:
            raise UsageError("gradients are still multiplied by the loss scale; call scaler.unscale_(optimizer) before")

    def _attach(self) -> None:
        optimizer = own_optimizer(self.optimizer)
        previous = getattr(optimizer.__dict__.get("__deepcopy__"), "__self__", None)
        if isinstance(previous, AGC):
            warnings.warn(
                "the optimizer had an AGC already; the new one replaces it, and the old one no longer clips",
                stacklevel=3,
            )
            previous.remove()
        self._update: UpdateClip | None = None
        self._hooks = [optimizer.register_step_pre_hook(self._before_step), *keep_clipping(optimizer)]
        if self.on == "update":
            self._hooks.append(optimizer.register_step_post_hook(self._after_step))
        optimizer.__dict__["__deepcopy__"] = self._copy_optimizer  # torch's copy of an optimizer has no hooks

    def _copy_optimizer(self, memo: dict[int, Any]) -> torch.optim.Optimizer:
        optimizer = own_optimizer(self.optimizer)
        del optimizer.__dict__["__deepcopy__"]
        try:
            copied = copy.deepcopy(optimizer, memo)
        finally:
            optimizer.__dict__["__deepcopy__"] = self._copy_optimizer
        memo[id(optimizer)] = copied
        memo[id(self)] = other = AGC.__new__(AGC)
        other.__setstate__(self.__getstate__() | dict(optimizer=copied, scaler=copy.deepcopy(self.scaler, memo)))
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> "AGC":
        optimizer = copy.deepcopy(self.optimizer, memo)  # puts a copy of this object into ``memo``, if it is attached
        if id(self) not in memo:
            memo[id(self)] = other = AGC.__new__(AGC)
            other.__dict__.update(self.__getstate__() | dict(scaler=copy.deepcopy(self.scaler, memo), _hooks=[]))
        memo[id(self)].optimizer = optimizer
        return memo[id(self)]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | dict(_hooks=bool(self._hooks), statistics=ClipStatistics(), _update=None)

    def __setstate__(self, state: dict[str, Any]) -> None:
        attached = state["_hooks"]
        self.__dict__.update(state | dict(_hooks=[]))
        if attached:
            self._attach()


def _unscaled(scaler: GradScaler, optimizer: torch.optim.Optimizer) -> bool:
    """Whether the scaler has divided the optimizer's gradients by the loss scale since its last step."""
    states = getattr(scaler, "_per_optimizer_states", None)
    if states is None:  # without this check, norms might be 65536 times too large
        raise UsageError(
            f"torch {torch.__version__} does not say whether gradients are still multiplied by the loss scale "
            "(GradScaler._per_optimizer_states is gone): leave out scaler= and call scaler.unscale_(optimizer) before"
        )
    return states[id(optimizer)]["stage"].name != "READY"


def own_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """torch's optimizer inside a wrapper, for example of Accelerate or Lightning.

    Raises:
        UsageError: there is none.
    """
    inner = optimizer
    while isinstance(getattr(inner, "optimizer", None), torch.optim.Optimizer):
        inner = inner.optimizer
    if not isinstance(inner, torch.optim.Optimizer):
        raise UsageError(
            f"an optimizer is needed, not {type(optimizer).__name__}; "
            "for example torch.optim.SGD(param_groups(model, clipping=0.01), lr=0.1)"
        )
    return inner


def keep_clipping(optimizer: torch.optim.Optimizer) -> list[RemovableHandle]:
    """From now on, ``load_state_dict`` does not change the names and the clipping of groups."""
    kept: list[dict[str, Any]] = []

    def before(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        kept[:] = [{key: group[key] for key in _OWN_KEYS if key in group} for group in optimizer.param_groups]

    def after(optimizer: torch.optim.Optimizer) -> None:
        for group, own in zip(optimizer.param_groups, kept, strict=True):
            for key in _OWN_KEYS:
                group.pop(key, None)
            group.update(own)

    hooks = optimizer.register_load_state_dict_pre_hook(before), optimizer.register_load_state_dict_post_hook(after)
    return list(hooks)
