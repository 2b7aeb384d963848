"""Which networks have a gradient of each example."""

from torch import Tensor, nn

from ..errors import UsageError
from ..nn import BATCH_NORM

_RUNNING = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def trained_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained, by name.

    Raises:
        UsageError: not a module; a module that mixes examples; nothing is trained.

    Example:
        >>> list(trained_parameters(nn.Linear(3, 1)))
        ['weight', 'bias']
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"a network (torch.nn.Module) is needed, not {type(model).__name__}")
    refuse_batch_norm(model)
    parameters: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise UsageError("no parameter of the network requires a gradient")
    return parameters


def refuse_batch_norm(model: nn.Module) -> None:
    """Refuse networks in which the gradient of an example depends on others.

    Raises:
        UsageError: BatchNorm, or InstanceNorm with running statistics; the message names the module.

    Example:
        >>> refuse_batch_norm(normfree.create_model("bn_resnet50", num_classes=10))
        Traceback (most recent call last):
            ...
        normfree.errors.UsageError: stages.0.0.bn0 (BatchNorm2d) mixes examples: ...
    """
    for name, module in model.named_modules():
        running = isinstance(module, _RUNNING) and module.track_running_stats
        if isinstance(module, BATCH_NORM) or running:
            raise UsageError(
                f"{name or 'the network'} ({type(module).__name__}) mixes examples: with it no example has a gradient "
                "of its own; take a network without normalization, or GroupNorm"
            )
