"""What follows an optimizer's step in decoupled and soft weight schemes (NF-ResNets, appendix G.1)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import UsageError
from ..kernels import fused_standardize_weight
from ..nn import DecoupledWSConv
from .agc import own_optimizer
from .sharded import is_flat, local, splits_units

_PULL = "weight_pull"  # attribute of an optimizer; torch does not copy it, nor the hook


class WeightPull:
    """Pulls weights towards their standardized ones after each step of any torch optimizer (:func:`.pull_weight`).

    >>> model = normfree.create_model("nf_resnet26_small", weight_scheme="decoupled", num_classes=10)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> pull = WeightPull(optimizer, model)
    >>> model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    >>> optimizer.step()  # or scaler.step(optimizer), or that of AGC
    >>> weight = model.stages[0][0].conv0.weight
    >>> weight.mean((1, 2, 3)).abs().max() < 1e-6, weight.square().sum((1, 2, 3)).allclose(torch.ones(16))
    (tensor(True), True)

    A hook behind the optimizer's own step, which acts on the weights of :class:`normfree.nn.DecoupledWSConv` and
    :class:`normfree.nn.SoftWSConv` that had a gradient in it; frozen weights stay. It keeps no state, and reads
    neither gradients nor momentum. Averages of the weights (:class:`.EMA`) are taken afterwards. Parameters that are
    split by rows over processes (FSDP2) are pulled in their own process.

    An optimizer has one such object; a second one replaces the first. A copy of the optimizer has none: make another.

    Args:
        optimizer: over the network's parameters. It may be a wrapper with the attribute ``optimizer``.
        model: whose layers are pulled, with the parameters that the optimizer has; sharded already, if it will be.
        strength: of the pull in soft layers, above 0 and at most 1, not multiplied by the learning rate. Decoupled
            ones are pulled all the way.

    Raises:
        UsageError: not an optimizer or a network; a network without such layers; no ``strength`` for soft layers, or
            one without soft layers, or out of range; an optimizer that has none of the weights; parameters that are
            split within a unit.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module, strength: float | None = None):
        if not isinstance(model, nn.Module):
            raise UsageError(f"WeightPull takes a network (torch.nn.Module), not {type(model).__name__}")
        layers = pulled_layers(model)
        if not layers:
            raise UsageError(
                f"{type(model).__name__} has no weights to pull; those of weight_scheme decoupled and soft have"
            )
        check_strength(layers, strength)
        _check_whole(model, layers)
        self.optimizer, self.strength = optimizer, strength
        self.layers: dict[Tensor, DecoupledWSConv] = {layer.weight: layer for layer in layers.values()}
        own = own_optimizer(optimizer)
        if not any(p in self.layers for group in own.param_groups for p in group["params"]):
            raise UsageError(
                f"the optimizer has none of the weights that {type(model).__name__} wants pulled; it must be made over "
                "the same parameters, after the network was moved and sharded"
            )
        previous = pull_of(own)
        if previous is not None:
            previous.remove()
        self._hook: RemovableHandle | None = own.register_step_post_hook(self._after_step)
        vars(own)[_PULL] = self

    def _after_step(self, *args: Any) -> None:
        self.pull()

    @torch.no_grad()
    def pull(self) -> None:
        """Pull the weights that have a gradient now."""
        for group in own_optimizer(self.optimizer).param_groups:
            for p in group["params"]:
                layer = self.layers.get(p)
                if layer is not None and p.grad is not None and local(p).numel():
                    strength = self.strength if layer.soft and self.strength is not None else 1.0
                    # functional.pull_weight, in place
                    local(p).lerp_(fused_standardize_weight(local(p), eps=layer.eps), strength)

    def remove(self) -> None:
        """Remove the hook; the optimizer then steps without it."""
        if self._hook is not None:
            self._hook.remove()
            vars(own_optimizer(self.optimizer)).pop(_PULL, None)
        self._hook = None


def pull_of(optimizer: torch.optim.Optimizer) -> WeightPull | None:
    """The optimizer's own :class:`WeightPull`, if it has one."""
    return vars(optimizer).get(_PULL)


def pulled_layers(model: nn.Module) -> dict[str, DecoupledWSConv]:
    """The layers whose weights are pulled, by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, DecoupledWSConv)}


def check_strength(layers: dict[str, DecoupledWSConv], strength: float | None, name: str = "strength") -> None:
    """Raise UsageError if the strength of a pull is out of range, missing, or for layers that are not there."""
    soft = any(layer.soft for layer in layers.values())
    if strength is None and soft:
        raise UsageError(f"{name} is not given; the network's soft weights need it, above 0 and at most 1")
    if strength is not None and not 0 < strength <= 1:
        raise UsageError(f"{name} (={strength}) must be above 0 and at most 1")
    if strength is not None and not soft:
        raise UsageError(f"{name} (={strength}) is for soft weights (weight_scheme soft); the network has none")


def _check_whole(model: nn.Module, layers: dict[str, DecoupledWSConv]) -> None:
    """Refuse weights of which a process has a part of a unit, whose mean and variance it cannot know."""
    flat = any(is_flat(p) for p in model.parameters())
    split = next((name for name, layer in layers.items() if flat or splits_units(layer.weight)), None)
    if split is not None:
        raise UsageError(
            f"{split}.weight is split over processes within its units, which WeightPull cannot standardize; shard the "
            "network by rows with torch.distributed.fsdp.fully_shard (FSDP2)"
        )
