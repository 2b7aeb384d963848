"""Layer-wise decay of the learning rate, for fine-tuning (Howard and Ruder 2018, arXiv:1801.06146, section 3.2)."""

from typing import Any

from torch import Tensor, nn

from ..errors import UsageError


def layer_depths(model: nn.Module) -> dict[str, int]:
    """How deep each parameter lies: 0 in the stem, one more with each block, most in the classifier or head.

    The order is the network's own, of its ``group_matcher``, as timm's networks have it, too. A convolution that widens
    the features behind the last block counts to that block. A network for pixels or objects has the order of its
    ``backbone``, and everything behind that is its head.

    Raises:
        UsageError: the network has no such order.

    Example:
        >>> model = normfree.create_model("nf_resnet26_small", num_classes=10)
        >>> depths = layer_depths(model)
        >>> depths["stem.conv.weight"], depths["stages.0.0.conv0.weight"], depths["head.fc.weight"]
        (0, 1, 9)
    """
    from timm.models import group_parameters

    backbone, prefix = model, ""
    if not hasattr(model, "group_matcher"):
        backbone, prefix = getattr(model, "backbone", model), "backbone."
    matcher: Any = getattr(backbone, "group_matcher", None)
    if matcher is None:
        raise UsageError(f"layer_decay needs the order of the layers, which {type(model).__name__} does not declare")
    layers: Any = group_parameters(backbone, matcher(), reverse=True)
    inside = {name: int(depth) for name, depth in layers.items()}
    behind = max(inside.values()) + 1
    return {name: inside.get(name.removeprefix(prefix), behind) for name, _ in model.named_parameters()}


def decayed_groups(groups: list[dict[str, Any]], model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Groups split by depth, whose ``lr_factor`` is multiplied by ``decay ** (deepest - depth)``.

    So the classifier keeps its learning rate, the last block has ``decay`` of it, and the stem the least.

    Args:
        groups: of :func:`param_groups`.

    Raises:
        UsageError: see :func:`layer_depths`.

    Example:
        >>> model = normfree.create_model("nf_resnet26_small", num_classes=10)
        >>> groups = decayed_groups(param_groups(model), model, 0.5)
        >>> [group["lr_factor"] for group in groups if group["name"] == "weight"][:3]
        [0.001953125, 0.00390625, 0.0078125]
    """
    depths = layer_depths(model)
    by_parameter = {p: depths[name] for name, p in model.named_parameters()}
    deepest, split = max(depths.values()), []
    for group in groups:
        layers: dict[int, list[Tensor]] = {}
        for p in group["params"]:
            layers.setdefault(by_parameter[p], []).append(p)
        for depth, params in sorted(layers.items()):
            factor = group.get("lr_factor", 1.0) * decay ** (deepest - depth)
            split.append(group | dict(params=params, lr_factor=factor))
    return split
