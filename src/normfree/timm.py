"""``import normfree.timm`` makes every model here one of timm's: ``timm.create_model("normfree_nfnet_f0")``.

The names are ours behind ``normfree_``; timm's own ``nfnet_f0`` is another function (see ``docs/facts.md``).
"""

import inspect
from collections.abc import Callable
from typing import Any

import timm.models
import torch
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    register_notrace_module,
)
from torch import Tensor, nn

from .models import ResidualNet, list_models, registry
from .models.weight_schemes import CONVOLUTIONS
from .nn import AvgPoolSame, MaxPoolSame, PaddedConv2d
from .weights.carry import fitted, warn
from .weights.file import Weights, read_weights_file, weights_of
from .weights.pretrained import sizes_of

PREFIX = "normfree_"
_STATE = "a state dict"  # for messages
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
            return registry.build_model(name, **options).to(dtype)

    return build


def _fitted(model: ResidualNet, weights: Weights) -> dict[str, Tensor]:
    state, notes = fitted(model, weights)
    warn(weights, notes)
    return model.state_dict() | state


def _source(cfg: Any) -> dict[str, Any]:
    """File and state dict of a configuration, where it has some."""
    cfg = cfg if isinstance(cfg, dict) else {} if isinstance(cfg, str) else vars(cfg or object) if cfg else {}
    return {key: cfg[key] for key in ("file", "state_dict", "source") if cfg.get(key)}


def _register(name: str) -> None:
    cls, variant = registry.lookup(name)
    levels = cls.map_count(len(variant["widths"]))

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
        given, weights = _source(kwargs.get("pretrained_cfg")) | _source(overlay), None
        if pretrained and given.get("source") != "local-dir" and given:
            weights = (
                weights_of(given["state_dict"], _STATE) if "state_dict" in given else read_weights_file(given["file"])
            )
            overlay = _sizes(name, weights, kwargs) | overlay | dict(state_dict=dict(weights.tensors))
        feature_cfg = dict(feature_cls="getter", out_indices=tuple(range(levels)), flatten_sequential=True)
        model = build_model_with_cfg(
            _build(name),
            PREFIX + name,
            pretrained,
            feature_cfg=feature_cfg,
            pretrained_filter_fn=lambda state, model: _fitted(model, weights or weights_of(state, _STATE)),
            pretrained_cfg_overlay=overlay | dict(first_conv=None),  # channels are adapted here, not by timm
            **kwargs,
        )
        config: dict[str, Any] = vars(model)["pretrained_cfg"]
        config["first_conv"] = registry.default_cfg(name)["first_conv"]
        config.pop("state_dict", None)  # it would keep the tensors
        vars(model)["asked_for"] = frozenset(kwargs)
        return model

    entrypoint.__name__ = entrypoint.__qualname__ = PREFIX + name
    entrypoint.__doc__ = f"``normfree.create_model({name!r})`` through timm."
    globals()[entrypoint.__name__] = register_model(entrypoint)


def _sizes(name: str, weights: Weights, kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a configuration says of weights in a file: classes, channels and their statistics."""
    allowed = inspect.signature(registry.lookup(name)[0].__init__).parameters.keys() - {"num_classes", "global_pool"}
    with torch.device("meta"):
        plain = registry.build_model(name, **{key: value for key, value in kwargs.items() if key in allowed})
    classes, channels = sizes_of(plain, weights)
    size = registry.default_cfg(name)["input_size"][1:]
    sizes = dict(num_classes=classes, input_size=(channels, *size))
    return sizes if channels == 3 else sizes | dict(mean=(0.5,) * channels, std=(0.5,) * channels)


def _load_checkpoint(model: nn.Module, checkpoint_path: Any, *args: Any, **options: Any) -> Any:
    """What ``timm.create_model(checkpoint_path=)`` calls: timm's own, but for models from here.

    Of these timm would load names, classes and channels as they are in the file, or fail.
    """
    inner = getattr(model, "model", None)
    if isinstance(inner, ResidualNet):
        model = inner  # features_only=True
    if not isinstance(model, ResidualNet):
        return _timms_load_checkpoint(model, checkpoint_path, *args, **options)
    weights = read_weights_file(checkpoint_path)
    classes, _ = sizes_of(model, weights) if model.num_classes else (0, 0)
    if "num_classes" not in getattr(model, "asked_for", ()) and classes not in (0, model.num_classes):
        model.reset_classifier(classes)
        model.pretrained_cfg["num_classes"] = classes
    model.load_state_dict(_fitted(model, weights))
    return None


# private to timm: where it is gone, timm's own reads checkpoint_path=, and refuses other classes by their shape
_factory: Any = getattr(timm.models, "_factory", None)
_timms_load_checkpoint: Any = getattr(_factory, "load_checkpoint", None)
if _timms_load_checkpoint is not None:
    _factory.load_checkpoint = _load_checkpoint

for _name in list_models():
    _register(_name)
# torch.fx: their padding depends on the size of the input
for _module in (*CONVOLUTIONS.values(), PaddedConv2d, MaxPoolSame, AvgPoolSame):
    register_notrace_module(_module)
