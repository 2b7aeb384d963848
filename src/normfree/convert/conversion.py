"""``convert``: one call from a network with normalization to one without it, and what it did."""

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from ..errors import UsageError, check_finite
from . import checks
from .change import Change, Refusal, is_left, refuse
from .fused import split_fused
from .identity import remove_norms
from .keep import fold_norms, freeze
from .kinds import is_batch_norm, is_normalization
from .rebuild import Rebuilder, clean
from .structure import Structure
from .tracing import evaluation, example_inputs, node_shapes, read, trace
from .walk import set_constants, take_constants

Mode = Literal["rebuild", "keep", "identity"]
MODES = ("rebuild", "keep", "identity")
Example = Tensor | Sequence[Tensor] | Sequence[int]
MAX_DIFFERENCE = 1e-4  # of the outputs of a kept network, relative; float32 leaves about 1e-6


@dataclass(frozen=True)
class Conversion:
    """A converted network, and what was done.

    Attributes:
        model: the new network; ``original``: the given one, unchanged.
        inputs: the tensors that it was converted with.
        changes: one for each place, in the order of the network.
        difference: of a kept network: relative to the norm of the output in evaluation.
    """

    model: nn.Module
    original: nn.Module
    mode: Mode
    inputs: tuple[Tensor, ...]
    changes: list[Change] = field(default_factory=list)
    difference: float | None = None

    @property
    def constants(self) -> dict[str, float]:
        """The constants that were found, by the names of the modules that have them."""
        return {change.module: change.factor for change in self.changes if change.factor is not None}


def convert_model(model: nn.Module, example: Example, **settings: Any) -> nn.Module:
    """The network without its normalization: what :func:`convert` returns as ``model``; arguments are the same.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
        >>> new = normfree.convert_model(net, (8, 3, 32, 32))
        >>> [type(module).__name__ for module in new.children()]
        ['WSConv2d', 'ReLU', 'WSConv2d']
    """
    return convert(model, example, **settings).model


def convert(
    model: nn.Module,
    example: Example,
    *,
    mode: Mode = "rebuild",
    leave: Collection[str] = (),
    freeze: Collection[str] = (),
    alpha: float = 0.2,
    skip_gain: float = 0.0,
    init: bool = True,
    constants: Mapping[str, float] | None = None,
) -> Conversion:
    """Take the normalization out of any network that :mod:`torch.fx` can read; the original stays as it is.

    "rebuild" makes a network to be trained from scratch: convolutions are standardized, with gain and bias, each
    residual merge becomes ``shortcut + alpha * skip_gain * branch(x / beta)``, activations are followed by their gamma,
    folded into the next layer (NF-ResNets, section 4). "keep" folds trained BatchNorms into convolutions with gains:
    the outputs in evaluation stay the same. "identity" leaves each normalization out and changes nothing else: the
    network that the other two are compared with.

    Args:
        example: inputs of the network, or the shape of one, with the batch, for unit Gaussian noise. Variances are
            measured on it where theory does not apply.
        leave: names of modules that stay as they are, with all in them; patterns such as ``"*.attn"``, too.
        freeze: with "keep", names of modules whose parameters are not to be trained.
        alpha, skip_gain: of each residual branch; the skip gain is a learnable scalar, 0 at first.
        init: draw the weights of standardized layers anew; else the network's own ones are standardized.
        constants: those of an earlier conversion of such a network, whose weights are loaded afterwards. Then nothing
            is measured and no statistics are needed; the network may be on the meta device.

    Raises:
        UsageError: what is not understood, by the name of the module and the reason; an argument that is none of the
            above; a network without normalization.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> print(*convert(net, (8, 3, 32, 32)).changes, sep="\\n")
        0: Conv2d -> WSConv2d (1, theory): standardized, with gain and bias
        1: BatchNorm2d -> removed: its place is taken by 0
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    _check_arguments(model, mode, leave, freeze, alpha, skip_gain)
    inputs = example_inputs(model, example)
    _check_has_norms(model, mode, leave)
    refuse(checks.tied(model, leave), type(model).__name__)
    if mode == "identity":
        bare = copy.deepcopy(model)
        return Conversion(bare, model, mode, inputs, remove_norms(bare, leave) + _left(model, leave))
    if mode == "keep":
        return _kept(model, inputs, leave, freeze, check=constants is None)
    return _rebuilt(model, inputs, leave, (alpha, skip_gain, init), constants)


def _rebuilt(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    leave: Collection[str],
    settings: tuple[float, float, bool],
    constants: Mapping[str, float] | None,
) -> Conversion:
    name = type(model).__name__
    graph = trace(copy.deepcopy(model), _whole(model, leave))
    structure = _structure(graph, inputs, leave)
    found = checks.unknown(model, structure, leave) + checks.shared(structure, leave)
    refuse(found + checks.functional(structure, leave) + checks.attention(structure, leave), name)
    rebuilder = Rebuilder(structure, leave, *settings)
    refuse(rebuilder.refusals(), name)
    edited = rebuilder.edit()
    if constants is None:
        set_constants(edited, inputs)
    else:
        take_constants(edited, constants)
    clean(edited)
    _check_gone(graph, leave, name)
    graph.train(model.training)
    changes = _in_order([*edited.changes.values(), *_left(model, leave)], model)
    return Conversion(graph, model, "rebuild", inputs, changes)


def _kept(
    model: nn.Module, inputs: tuple[Tensor, ...], leave: Collection[str], frozen: Collection[str], *, check: bool
) -> Conversion:
    name, training = type(model).__name__, {key: module.training for key, module in model.named_modules()}
    refuse(checks.uncollected(model, leave) if check else [], name)
    kept = copy.deepcopy(model)
    graph = read(kept, _whole(model, leave))
    structure = _structure(graph, inputs, leave)
    found = checks.unknown(model, structure, leave) + checks.shared(structure, leave)
    refuse(found + checks.functional(structure, leave, batch_only=True), name)
    changes = fold_norms(kept, structure, leave)
    _check_gone(kept, leave, name, batch_only=True)
    changes += freeze(kept, frozen)
    for key, module in kept.named_modules():  # reading a graph takes training mode
        module.training = training.get(key, model.training)
    difference = relative_difference(model, kept, inputs) if check else None
    if difference is not None and not difference <= MAX_DIFFERENCE:
        raise UsageError(
            f"{name} without BatchNorm differs from it by {difference:.1e} in evaluation; a module computes something"
            " else than its class says, or the example is none of its inputs"
        )
    return Conversion(kept, model, "keep", inputs, changes, difference)


def _structure(graph: fx.GraphModule, inputs: tuple[Tensor, ...], leave: Collection[str]) -> Structure:
    shapes = node_shapes(graph, inputs)
    split_fused(graph, shapes, leave)
    return Structure(graph, shapes)


def _whole(model: nn.Module, leave: Collection[str]) -> set[str]:
    """Modules that ``leave`` names: the outermost ones stay one operation."""
    return {name for name, _ in model.named_modules() if name and is_left(name, leave)}


def _in_order(changes: list[Change], model: nn.Module) -> list[Change]:
    """As the network's modules are; what was added comes behind the module that it is in."""
    places = {name: place for place, (name, _) in enumerate(model.named_modules())}

    def place(change: Change) -> int:
        name = change.module
        while name not in places:
            name = name.rpartition(".")[0]
        return places[name]

    return sorted(changes, key=place)


def _left(model: nn.Module, leave: Collection[str]) -> list[Change]:
    norms = [(name, m) for name, m in model.named_modules() if is_normalization(m) and is_left(name, leave)]
    return [Change(name, type(m).__name__, "left", "as leave= says") for name, m in norms]


def _check_gone(model: nn.Module, leave: Collection[str], network: str, *, batch_only: bool = False) -> None:
    """Refuse a result with a normalization that nobody wanted left."""
    is_one = is_batch_norm if batch_only else is_normalization
    rest = [name for name, m in model.named_modules() if is_one(m) and not is_left(name, leave)]
    refuse([Refusal(name, "this normalization never runs on the example") for name in rest], network)


def _check_has_norms(model: nn.Module, mode: Mode, leave: Collection[str]) -> None:
    is_one = is_batch_norm if mode == "keep" else is_normalization
    what = "BatchNorm" if mode == "keep" else "normalization"
    if not any(is_one(m) and not is_left(name, leave) for name, m in model.named_modules()):
        raise UsageError(f"{type(model).__name__} has no {what} that could be taken out")


def _check_arguments(model: Any, mode: Any, leave: Any, frozen: Any, alpha: Any, skip_gain: Any) -> None:
    if not isinstance(model, nn.Module):
        raise UsageError(f"convert takes a torch.nn.Module, not a {type(model).__name__}")
    if mode not in MODES:
        raise UsageError(f"mode (={mode!r}) must be one of {', '.join(MODES)}")
    for name, value in dict(leave=leave, freeze=frozen).items():
        if isinstance(value, str) or not all(isinstance(one, str) for one in value):
            raise UsageError(f"{name} (={value!r}) must be a list of names, such as [{value!r}]")
    for name, value in dict(alpha=alpha, skip_gain=skip_gain).items():
        check_finite(name, value)
    if frozen and mode != "keep":
        raise UsageError(f"freeze (={list(frozen)}) is for mode='keep': a rebuilt network trains from scratch")
    names = [name for name, _ in model.named_modules() if name]
    for one in leave:
        if not any(is_left(name, [one]) for name in names):
            raise UsageError(f"leave (={one!r}) names no module of {type(model).__name__}")


@torch.no_grad()
def relative_difference(one: nn.Module, other: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """The largest relative difference of the outputs of two networks in evaluation, each over the norm of an output."""
    outputs = []
    for model in (one, other):
        with evaluation(model), torch.random.fork_rng(devices=[]):
            outputs.append(list(_tensors(model(*(x.clone() for x in inputs)))))
    differences = [0.0]
    for a, b in zip(*outputs, strict=True):
        scale = a.double().norm().item()
        differences.append((a.double() - b.double()).norm().item() / (scale or 1.0))
    return max(differences)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
