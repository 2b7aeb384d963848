"""``import normfree.timm`` makes every model here one of timm's: ``timm.create_model("normfree_nfnet_f0")``.

The names are ours behind ``normfree_``; timm's own ``nfnet_f0`` is another function (see ``docs/facts.md``).
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, register_notrace_module
from torch import Tensor, nn

from .models import ResidualNet, list_models, registry
from .nn import AvgPoolSame, MaxPoolSame, PaddedConv2d, SameConv2d, WSConv2d
from .weights.timm import timm_names

PREFIX = "normfree_"
__all__: list[str] = []  # register_model adds the entry points


def _tagged(name: str) -> str:
    """timm's key of a configuration: with the tag of the published weights where there are some."""
    hub = registry.default_cfg(name).get("hf_hub_id")
    return PREFIX + name + (f".{hub.rpartition('.')[2]}" if hub else "")


def _cfg(name: str) -> dict[str, Any]:
    return {key: value for key, value in registry.default_cfg(name).items() if key != "architecture"}


default_cfgs = generate_default_cfgs({_tagged(name): _cfg(name) for name in list_models()})


def _build(name: str) -> Callable[..., ResidualNet]:
    """What makes a model of timm's arguments."""
    cls, _ = registry.lookup(name)
    allowed = inspect.signature(cls.__init__).parameters.keys() | {"device", "dtype"}

    def build(
        *, drop_path_rate: float | None = None, device: Any = None, dtype: torch.dtype | None = None, **options: Any
    ) -> ResidualNet:
        unknown = sorted(options.keys() - allowed)
        if unknown:
            raise TypeError(f"{PREFIX}{name} has no argument {', '.join(unknown)}")
        if drop_path_rate is not None:
            options["stochdepth_rate"] = drop_path_rate
        with torch.device(device if device is not None else torch.get_default_device()):
            return registry.create_model(name, **options).to(dtype)

    return build


def _as_ours(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A checkpoint with our names; one with timm's is renamed and reshaped."""
    state = state.get("state_dict", state)
    own = model.state_dict()
    if model.family not in ("nfnet", "timm") or own.keys() <= state.keys():
        return state
    return {
        ours: state[theirs].reshape(own[ours].shape) for ours, theirs in timm_names(model).items() if theirs in state
    }


def _register(name: str) -> None:
    levels = len(registry.lookup(name)[1]["widths"]) + 1

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        feature_cfg = dict(feature_cls="getter", out_indices=tuple(range(levels)), flatten_sequential=True)
        options = dict(feature_cfg=feature_cfg, pretrained_filter_fn=_as_ours)
        return build_model_with_cfg(_build(name), PREFIX + name, pretrained, **options, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = PREFIX + name
    entrypoint.__doc__ = f"``normfree.create_model({name!r})`` through timm."
    globals()[entrypoint.__name__] = register_model(entrypoint)


for _name in list_models():
    _register(_name)
# torch.fx: their padding depends on the size of the input
for _module in (SameConv2d, WSConv2d, PaddedConv2d, MaxPoolSame, AvgPoolSame):
    register_notrace_module(_module)
