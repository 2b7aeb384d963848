"""The optimizers that a recipe may name, each with options of its own: ``optim.name`` and ``optim.options``."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch

from ..errors import UsageError, did_you_mean
from ..nn import Role
from .adaptive import LAMB, LaProp
from .imported import build_imported, is_import
from .lars import LARS
from .muon import Muon
from .rmsprop import RMSProp
from .schedule_free import build_schedule_free

Groups = list[dict[str, Any]]
ROLES = tuple(role.value for role in Role)


@dataclass(frozen=True)
class Shared:
    """What the recipe's section says for every optimizer; learning rate, decay and clipping are in the groups."""

    momentum: float
    nesterov: bool


@dataclass(frozen=True)
class Named:
    """An optimizer with a name.

    Attributes:
        kind: the name of its class.
        options: a dataclass of its own options, which checks their values; dict for any.
        build: the optimizer over groups, with learning rate 0.
        nesterov: whether it has Nesterov's form of momentum.
        kept: tensors of a parameter's size that it keeps for each.
        schedule_free: whether it has a constant learning rate and an average of its own.
    """

    kind: str
    options: type
    build: Callable[[Groups, Shared, Any], torch.optim.Optimizer]
    nesterov: bool = False
    kept: int = 1
    schedule_free: bool = False


@dataclass(frozen=True)
class NoOptions:
    """Of an optimizer without options of its own."""


@dataclass(frozen=True)
class LARSOptions:
    """Of :class:`LARS`; ``scaled``: the roles whose tensors take scaled steps, the others take those of SGD."""

    trust_coefficient: float = 0.001
    eps: float = 0.0
    scaled: tuple[str, ...] = ROLES

    def __post_init__(self) -> None:
        check_number("trust_coefficient", self.trust_coefficient, above=0)
        check_number("eps", self.eps, least=0)
        check_roles("scaled", self.scaled)


@dataclass(frozen=True)
class MuonOptions:
    """Of :class:`Muon`; ``orthogonalized``: the roles whose steps are, the others take those of SGD."""

    relative: bool = True
    steps: int = 5
    orthogonalized: tuple[str, ...] = (Role.WEIGHT.value,)

    def __post_init__(self) -> None:
        if not isinstance(self.relative, bool):
            raise UsageError(f"relative (={self.relative!r}) must be true or false")
        check_number("steps", self.steps, least=1, below=100)
        if self.steps != int(self.steps):
            raise UsageError(f"steps (={self.steps!r}) must be a whole number")
        check_roles("orthogonalized", self.orthogonalized)


@dataclass(frozen=True)
class RMSPropOptions:
    """Of :class:`RMSProp`."""

    decay: float = 0.9
    eps: float = 0.001

    def __post_init__(self) -> None:
        check_number("decay", self.decay, least=0, below=1)
        check_number("eps", self.eps, least=0)


@dataclass(frozen=True)
class AdamOptions:
    """Of :class:`torch.optim.Adam`, :class:`torch.optim.AdamW` and :class:`LaProp`; ``betas`` are in the place of the
    momentum."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise UsageError(f"betas (={self.betas!r}) must be two numbers, such as [0.9, 0.999]")
        for beta in self.betas:
            check_number("betas", beta, least=0, below=1)
        check_number("eps", self.eps, least=0)


@dataclass(frozen=True)
class LAMBOptions(AdamOptions):
    """Of :class:`LAMB`; ``scaled``: the roles whose steps have the length of their tensor."""

    eps: float = 1e-6
    scaled: tuple[str, ...] = (Role.WEIGHT.value, Role.CLASSIFIER.value)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_roles("scaled", self.scaled)


@dataclass(frozen=True)
class ScheduleFreeOptions:
    """Of schedule-free SGD; ``r``: the power of the number of the step by which steps weigh in the average."""

    r: float = 0.0

    def __post_init__(self) -> None:
        check_number("r", self.r, least=0)


@dataclass(frozen=True)
class ScheduleFreeAdamWOptions(AdamOptions):
    """Of schedule-free AdamW; ``r`` as there."""

    r: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("r", self.r, least=0)
        check_number("betas", self.betas[0], above=0)


def _sgd(groups: Groups, shared: Shared, options: NoOptions) -> torch.optim.SGD:
    return torch.optim.SGD(groups, lr=0.0, momentum=shared.momentum, nesterov=shared.nesterov)


def _lars(groups: Groups, shared: Shared, options: LARSOptions) -> LARS:
    for group in groups:
        group["trust_coefficient"] = options.trust_coefficient if group["name"] in options.scaled else None
    return LARS(groups, lr=0.0, momentum=shared.momentum, nesterov=shared.nesterov, eps=options.eps)


def _muon(groups: Groups, shared: Shared, options: MuonOptions) -> Muon:
    for group in groups:
        group["orthogonalized"] = group["name"] in options.orthogonalized
    relative, steps = options.relative, int(options.steps)
    return Muon(groups, lr=0.0, momentum=shared.momentum, nesterov=shared.nesterov, relative=relative, steps=steps)


def _rmsprop(groups: Groups, shared: Shared, options: RMSPropOptions) -> RMSProp:
    return RMSProp(groups, lr=0.0, momentum=shared.momentum, decay=options.decay, eps=options.eps)


def _adam(groups: Groups, shared: Shared, options: AdamOptions) -> torch.optim.Adam:
    return torch.optim.Adam(groups, lr=0.0, betas=options.betas, eps=options.eps)


def _adamw(groups: Groups, shared: Shared, options: AdamOptions) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=0.0, betas=options.betas, eps=options.eps)


def _lamb(groups: Groups, shared: Shared, options: LAMBOptions) -> LAMB:
    for group in groups:
        group["scaled"] = group["name"] in options.scaled
    return LAMB(groups, lr=0.0, betas=options.betas, eps=options.eps)


def _laprop(groups: Groups, shared: Shared, options: AdamOptions) -> LaProp:
    return LaProp(groups, lr=0.0, betas=options.betas, eps=options.eps)


def _schedulefree_sgd(groups: Groups, shared: Shared, options: ScheduleFreeOptions) -> torch.optim.Optimizer:
    return build_schedule_free("SGDScheduleFree", groups, momentum=shared.momentum, r=options.r)


def _schedulefree_adamw(groups: Groups, shared: Shared, options: ScheduleFreeAdamWOptions) -> torch.optim.Optimizer:
    own = dict(betas=options.betas, eps=options.eps, r=options.r)
    return build_schedule_free("AdamWScheduleFree", groups, **own)


OPTIMIZERS: dict[str, Named] = {
    "sgd": Named("SGD", NoOptions, _sgd, nesterov=True),
    "lars": Named("LARS", LARSOptions, _lars, nesterov=True),
    "muon": Named("Muon", MuonOptions, _muon, nesterov=True),
    "rmsprop": Named("RMSProp", RMSPropOptions, _rmsprop, kept=2),
    "adam": Named("Adam", AdamOptions, _adam, kept=2),
    "adamw": Named("AdamW", AdamOptions, _adamw, kept=2),
    "lamb": Named("LAMB", LAMBOptions, _lamb, kept=2),
    "laprop": Named("LaProp", AdamOptions, _laprop, kept=2),
    "schedulefree_sgd": Named("SGDScheduleFree", ScheduleFreeOptions, _schedulefree_sgd, schedule_free=True),
    "schedulefree_adamw": Named(
        "AdamWScheduleFree", ScheduleFreeAdamWOptions, _schedulefree_adamw, kept=2, schedule_free=True
    ),
}


def named(name: str) -> Named:
    """An optimizer by its name, or by ``package.module:Class``, which is imported only when it is built.

    Raises:
        UsageError: there is none of that name; the nearest one is suggested.
    """
    if is_import(name):
        return Named("", dict, lambda groups, shared, options: build_imported(name, groups, options))
    if name not in OPTIMIZERS:
        raise UsageError(f"name (={name!r}) is no optimizer; {did_you_mean(name, OPTIMIZERS, _known())}")
    return OPTIMIZERS[name]


def options_of(name: str, given: Mapping[str, Any]) -> Any:
    """The options of an optimizer, checked; those that are not given have their defaults.

    >>> options_of("rmsprop", {"eps": 1.0})
    RMSPropOptions(decay=0.9, eps=1.0)

    Raises:
        UsageError: an unknown name or option, or a value out of range.
    """
    kind = named(name).options
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    if kind is dict:  # of an imported class, which checks them itself
        return given
    fields = [field.name for field in dataclasses.fields(kind)]
    for key in given:
        if key not in fields:
            hint = did_you_mean(str(key), fields, f"it has {', '.join(fields) or 'none'}")
            raise UsageError(f"options names {key!r}, which {name} does not have; {hint}")
    try:
        return kind(**given)
    except UsageError as error:
        raise UsageError(f"options.{error}") from error


def kept_tensors(optimizer: torch.optim.Optimizer) -> int:
    """Tensors of a parameter's size that an optimizer keeps for each; 1 for unknown ones."""
    return next((entry.kept for entry in OPTIMIZERS.values() if type(optimizer).__name__ == entry.kind), 1)


def check_number(
    name: str, value: Any, *, least: float | None = None, above: float | None = None, below: float | None = None
) -> None:
    """Refuse what is not a number within its range.

    Raises:
        UsageError: it is none.
    """
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else float("nan")
    bounds = [("at least", least), ("above", above), ("below", below)]
    inside = (least is None or number >= least) and (above is None or number > above)
    if not (inside and number < (float("inf") if below is None else below)):
        range_ = " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
        raise UsageError(f"{name} (={value!r}) must be a number {range_}".rstrip())


def check_roles(name: str, value: Any) -> None:
    """Refuse what is not a list of roles.

    Raises:
        UsageError: it is none.
    """
    if isinstance(value, str) or not isinstance(value, tuple) or any(role not in ROLES for role in value):
        raise UsageError(f"{name} (={value!r}) must be a list of roles: {', '.join(ROLES)}")


def _known() -> str:
    return f"there are {', '.join(OPTIMIZERS)}"
