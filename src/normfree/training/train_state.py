"""The state of a training run, which a checkpoint stores so that the run can be resumed exactly."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import Unreadable
from ..errors import UsageError
from ..optim.sharded import fill, whole
from .checkpoints import read_state, read_tensors
from .environment import basis
from .step import TrainStep
from .weights_file import load_weights

MOMENTUM = "momentum_buffer"  # torch's name of it in the state of an optimizer
COUNTS = {str(kind).removeprefix("torch."): kind for kind in (torch.float32, torch.float64, torch.int64)}


@dataclass
class TrainState:
    """The progress of a run.

    Attributes:
        step: optimizer steps done.
        epoch, batch: of the next batch: its epoch, and its number in it.
        metrics: of the last evaluation; best: of the best one.
        unreadable: images that could not be read, each once.
        seconds: of training so far.
        waited: evaluations since the best one.
        micro_batch: the size chosen by "auto".
        unevaluated: whether the evaluation after this step is still to be done.
        spent: of private training: noise multiplier, sampling rate and number of steps, one after the other.
        recent: loss, right answers, images and seconds of the last steps, for the running means.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    unreadable: list[Unreadable] = field(default_factory=list)
    seconds: float = 0.0
    waited: int = 0
    micro_batch: int | None = None
    unevaluated: bool = False
    spent: list[list[float]] = field(default_factory=list)
    recent: list[list[float]] = field(default_factory=list)


def capture(step: TrainStep, progress: TrainState) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What a checkpoint stores: tensors by file name, and everything else as JSON.

    Every process must call it, since the random states of all processes are stored.
    """
    random = {}
    for rank, states in enumerate(step.replicas.gather(_random_state(step.device))):
        random |= {f"{kind}.{rank}": state for kind, state in states.items()}
    weights = {name: whole(tensor) for name, tensor in step.model.state_dict().items()}
    files = dict(weights=weights, random=random) | _optimizer_state(step)
    if step.ema is not None:
        files["ema"] = {name: whole(tensor) for name, tensor in step.ema.average.items()}
    micro_batch = step.micro_batch if isinstance(step.micro_batch, int) else None
    rest = asdict(progress) | dict(micro_batch=micro_batch)
    rest |= dict(
        environment=basis(step.device), world=step.replicas.world, skipped=step.skipped, scaler=step.scaler.state_dict()
    )
    if step.ema is not None:
        rest["ema_steps"] = step.ema.steps
    if any(numbers := _group_numbers(step)):
        rest["groups"] = numbers
    return files, rest


def restore(checkpoint: Path, step: TrainStep) -> tuple[TrainState, list[str]]:
    """Fill the step's model, momentum, averages and random states from a checkpoint of a run.

    Returns:
        The state of the run, and notes for the user.

    Raises:
        UsageError: the checkpoint is of another network or recipe.
    """
    state, notes = read_state(checkpoint), []
    load_weights(step.model, read_tensors(checkpoint, "weights"), str(checkpoint))
    notes += _restore_optimizer(checkpoint, step)
    _restore_groups(state.get("groups", []), step, checkpoint)
    if step.ema is not None:
        if "ema_steps" not in state:
            raise UsageError(f"{checkpoint} has no averaged weights; the run it is of had optim.ema_decay null")
        average = read_tensors(checkpoint, "ema")
        step.ema.load_state_dict(dict(average=average, steps=state["ema_steps"], decay=step.ema.decay))
    if state["scaler"]:
        step.scaler.load_state_dict(state["scaler"])
    step.skipped = state["skipped"]
    if step.micro_batch == "auto" and state.get("micro_batch") is not None:
        step.micro_batch = state["micro_batch"]  # the size before the stop, so that results are the same bit for bit
    replicas = step.replicas
    random = read_tensors(checkpoint, "random")
    own = {k.rpartition(".")[0]: v for k, v in random.items() if k.endswith(f".{replicas.rank}")}
    effect = "the same images in the same order, but other dropout masks"
    if state["world"] == replicas.world and "cpu" in own:
        _set_random_state(own, step.device)
    else:
        torch.manual_seed(torch.initial_seed() + 1_000_003 * state["step"] + replicas.rank)
        if state["world"] == replicas.world:
            notes.append(f"{checkpoint} has no random states: {effect}")
        else:
            notes.append(f"the run had {state['world']} processes and goes on with {replicas.world}: {effect}")
    progress = TrainState(**{name: state[name] for name in TrainState.__dataclass_fields__ if name in state})
    progress.unreadable = [Unreadable.stored(one) for one in progress.unreadable]
    return progress, notes


def _optimizer_state(step: TrainStep) -> dict[str, dict[str, Tensor]]:
    """The momentum by the name of its parameter, and what else an optimizer keeps, as ``NAME/KEY``."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in step.model.named_parameters()}
    momentum: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for p, state in step.optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                file, name = (momentum, names[p]) if key == MOMENTUM else (others, f"{names[p]}/{key}")
                file[name] = whole(value)
            elif value is not None:
                raise UsageError(
                    f"{type(step.optimizer).__name__} keeps {key!r}, which is not a tensor, so that no run could go on"
                )
    return dict(momentum=momentum) | (dict(optimizer=others) if others else {})


def _restore_optimizer(checkpoint: Path, step: TrainStep) -> list[str]:
    """Fill the optimizer's state; notes for the user."""
    notes, parameters = [], dict(step.model.named_parameters())
    for kind, what in (("momentum", "momentum"), ("optimizer", "state of the optimizer")):
        tensors = read_tensors(checkpoint, kind)
        if kind == "momentum" and not (checkpoint / f"{kind}.safetensors").is_file():
            notes.append(f"{checkpoint} has no {kind}.safetensors: the momentum begins again at zero")
        found = {name: name.rpartition("/")[::2] if kind == "optimizer" else (name, MOMENTUM) for name in tensors}
        unknown = sorted({name for name, _ in found.values()} - parameters.keys())
        if unknown:
            raise UsageError(f"{checkpoint} has {what} of {', '.join(unknown[:4])}, which the network does not have")
        for entry, (name, key) in found.items():
            step.optimizer.state[parameters[name]][key] = _like(parameters[name], tensors[entry])
    return notes


def _group_numbers(step: TrainStep) -> list[dict[str, Any]]:
    """What the optimizer has changed in its groups, which some use for counts of steps; the learning rate aside."""
    changed = []
    for group, start in zip(step.optimizer.param_groups, step.groups_at_start, strict=True):
        changed.append({})
        for key, value in group.items():
            if key in ("params", "lr") or value is start.get(key):
                continue
            single = isinstance(value, Tensor) and value.ndim == 0
            if not single and not isinstance(value, int | float):
                raise UsageError(
                    f"{type(step.optimizer).__name__} keeps {key!r} in its groups, which is not a number, so that no "
                    "run could go on"
                )
            number = value.item() if isinstance(value, Tensor) else value
            if isinstance(value, Tensor) or number != start.get(key):
                kind = str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else None
                changed[-1][key] = number if kind is None else dict(tensor=number, dtype=kind)
    return changed


def _restore_groups(numbers: list[dict[str, Any]], step: TrainStep, checkpoint: Path) -> None:
    groups = step.optimizer.param_groups
    if numbers and len(numbers) != len(groups):
        raise UsageError(f"{checkpoint} has {len(numbers)} groups of parameters, and the optimizer {len(groups)}")
    for group, changed in zip(groups, numbers, strict=False):
        for key, value in changed.items():
            if isinstance(value, dict):
                value = torch.tensor(value["tensor"], dtype=COUNTS.get(value["dtype"]))
            group[key] = value


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """A stored tensor, split over processes like its parameter if it has its shape; others (counts of steps) as is."""
    if value.shape != parameter.shape:
        return value
    target = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
    fill(target, value)
    return target


def _random_state(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random_state(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
