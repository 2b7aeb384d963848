"""Names of models: creating, listing and describing them."""

import fnmatch
import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..errors import UsageError, did_you_mean
from ..words import shown
from . import cifarnet, nf_efficientnet, nf_regnet, nf_resnet, nfnet, timm_nfnet, unet
from .body import ResidualNet
from .complexity import Complexity, count_macs
from .controls import bn_cifarnet, bn_efficientnet, bn_nfnet, bn_resnet, fixup_resnet, skipinit_resnet
from .controls import unet as unet_controls
from .options import check_options
from .published import PUBLISHED

ORIGIN = "https://github.com/google-deepmind/deepmind-research/tree/master/nfnets"
STEM_STRIDES = {"3x3": 1, "7x7-nopool": 2}  # of NF-ResNets for small images
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_VARIANTS: dict[str, tuple[type[ResidualNet], dict[str, Any]]] = {
    name: (cls, variant)
    for cls, variants in (
        (nfnet.NFNet, nfnet.VARIANTS),
        (nf_regnet.NFRegNet, nf_regnet.VARIANTS),
        (nf_resnet.NFResNet, nf_resnet.VARIANTS),
        (nf_efficientnet.NFEfficientNet, nf_efficientnet.VARIANTS),
        (timm_nfnet.TimmNFNet, timm_nfnet.VARIANTS),
        (cifarnet.NFCifarNet, cifarnet.VARIANTS),
        # controls
        (bn_resnet.BNResNet, bn_resnet.VARIANTS),
        (bn_resnet.BNResNetV1, bn_resnet.V1_VARIANTS),
        (bn_resnet.BNResNet, bn_resnet.PLAIN_VARIANTS),
        (bn_resnet.GNResNet, bn_resnet.GN_VARIANTS),
        (fixup_resnet.FixupResNet, fixup_resnet.VARIANTS),
        (skipinit_resnet.SkipInitResNet, skipinit_resnet.VARIANTS),
        (bn_nfnet.BNNFNet, bn_nfnet.VARIANTS),
        (bn_efficientnet.BNEfficientNet, bn_efficientnet.VARIANTS),
        (bn_cifarnet.BNCifarNet, bn_cifarnet.VARIANTS),
        (bn_cifarnet.GNCifarNet, bn_cifarnet.GN_VARIANTS),
    )
    for name, variant in variants.items()
}

# networks for segmentation, which answer at each place
_UNETS: dict[str, tuple[type[unet.UNet], dict[str, Any]]] = {
    name: (cls, variant)
    for cls, variants in (
        (unet.NFUNet, unet.VARIANTS),
        (unet_controls.BNUNet, unet_controls.BN_VARIANTS),
        (unet_controls.INUNet, unet_controls.IN_VARIANTS),
    )
    for name, variant in variants.items()
}


@dataclass(frozen=True)
class ModelInfo:
    """Numbers of a model at 1000 classes.

    Attributes:
        params: parameters.
        macs: multiply-adds of one image at ``test_size``, counted as in the papers (which call them FLOPs): strides
            halve odd maps exactly.
        macs_executed: multiply-adds that the network performs; larger only if the stride does not divide the size.
        train_size, test_size: side of the images in pixels.
        drop_rate, stochdepth_rate: the variant's regularization.
    """

    name: str
    family: str
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    params: int
    macs: int
    macs_executed: int
    train_size: int
    test_size: int
    drop_rate: float
    stochdepth_rate: float


def list_models(pattern: str = "*", *, task: Literal["classification", "segmentation"] = "classification") -> list[str]:
    """Names of all models that match a shell pattern, for example ``"nfnet_*"``.

    Args:
        task: "classification": the networks with a classifier, which are backbones, too; "segmentation": U-Nets.

    Raises:
        UsageError: another task.

    Example:
        >>> list_models("nfnet_f[01]*")
        ['nfnet_f0', 'nfnet_f1', 'nfnet_f0_plus', 'nfnet_f1_plus']
        >>> list_models("*3d", task="segmentation")
        ['nf_unet3d', 'bn_unet3d', 'in_unet3d']
    """
    if task not in ("classification", "segmentation"):
        raise UsageError(f'task (={task!r}) must be "classification" or "segmentation"')
    return [name for name in (_UNETS if task == "segmentation" else _VARIANTS) if fnmatch.fnmatch(name, pattern)]


def build_model(
    name: str,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_rate: float | None = None,
    stochdepth_rate: float | None = None,
    **overrides: Any,
) -> ResidualNet:
    """A model by name, freshly initialized: (N, in_chans, H, W) -> (N, num_classes); see :func:`build_unet` for U-Nets.

    :func:`normfree.create_model` is this function with pretrained weights.

    Args:
        name: one of :func:`list_models`.
        num_classes: 0 gives pooled features instead of logits.
        drop_rate, stochdepth_rate: None takes the variant's.
        overrides: further arguments of the family's class, for example ``activation="silu"``, ``depths=(1, 1, 1, 1)``.

    Raises:
        UsageError: unknown name or override (the nearest ones are suggested), or a value of a wrong type or out of
            range.

    Example:
        >>> model = build_model("nf_resnet26_small", num_classes=10)
        >>> model(torch.randn(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """
    if name in _UNETS:
        rates = dict(drop_rate=drop_rate, stochdepth_rate=stochdepth_rate)
        return build_unet(name, num_classes=num_classes, in_chans=in_chans, **rates, **overrides)  # pyright: ignore
    cls, variant = lookup(name)
    options = dict(num_classes=num_classes, in_chans=in_chans)
    options |= {k: v for k, v in dict(drop_rate=drop_rate, stochdepth_rate=stochdepth_rate).items() if v is not None}
    _check_overrides(name, cls, overrides)
    structure = {k: v for k, v in variant.items() if k not in ("train_size", "test_size")}
    model = cls(**{**structure, **options, **overrides})
    cfg: dict[str, Any] = default_cfg(name) | dict(num_classes=num_classes, first_conv=model.first_conv)
    reduction = model.feature_info[-1]["reduction"]
    for pool, input_size in (("pool_size", "input_size"), ("test_pool_size", "test_input_size")):
        cfg[pool] = (-(-cfg[input_size][-1] // reduction),) * 2
    if in_chans != 3:
        cfg |= {key: (in_chans, *cfg[key][1:]) for key in ("input_size", "test_input_size")}
        cfg |= dict(mean=(0.5,) * in_chans, std=(0.5,) * in_chans)
    model.default_cfg = model.pretrained_cfg = cfg
    return model


def build_unet(name: str, *, num_classes: int, in_chans: int, **options: Any) -> unet.UNet:
    """A U-Net by name, freshly initialized: (N, in_chans, *places) -> (N, num_classes, *places).

    Args:
        name: one of ``list_models(task="segmentation")``.
        options: of the family's class, for example ``depths=(1, 1, 1)``; None takes the default.

    Raises:
        UsageError: as :func:`build_model`.

    Example:
        >>> model = build_unet("nf_unet3d", num_classes=3, in_chans=1, widths=(8, 16, 16))
        >>> model(torch.randn(1, 1, 8, 8, 8)).shape
        torch.Size([1, 3, 8, 8, 8])
    """
    cls, variant = lookup_unet(name)
    options = {key: value for key, value in options.items() if value is not None}
    _check_overrides(name, cls, options)
    structure = {k: v for k, v in variant.items() if k not in ("train_size", "test_size")}
    model = cls(**{**structure, "num_classes": num_classes, "in_chans": in_chans, **options})
    cfg: dict[str, Any] = dict(
        architecture=name,
        num_classes=num_classes,
        input_size=(in_chans, *(variant["train_size"],) * model.dims),
        test_input_size=(in_chans, *(variant["test_size"],) * model.dims),
        mean=IMAGENET_MEAN if in_chans == 3 else (0.5,) * in_chans,
        std=IMAGENET_STD if in_chans == 3 else (0.5,) * in_chans,
        first_conv="stem",
        classifier="classifier",
        paper_ids=cls.paper,
    )
    model.default_cfg = model.pretrained_cfg = cfg
    return model


def lookup_any(name: str) -> tuple[type[Any], dict[str, Any]]:
    """A model's class and its arguments, a U-Net's too."""
    return _UNETS[name] if name in _UNETS else lookup(name)


def lookup_unet(name: str) -> tuple[type[unet.UNet], dict[str, Any]]:
    """A U-Net's class and its arguments; UsageError with the nearest names if the name is unknown."""
    if name not in _UNETS:
        hint = did_you_mean(name, _UNETS, f"there are {', '.join(_UNETS)}")
        raise UsageError(f"model {shown(name)} is no U-Net; {hint}")
    return _UNETS[name]


def _check_overrides(name: str, cls: type[Any], overrides: Mapping[str, Any]) -> None:
    allowed = [k for k in inspect.signature(cls.__init__).parameters if k != "self"]
    for key in overrides:
        if key not in allowed:
            hint = did_you_mean(key, allowed, f"it has {', '.join(allowed)}")
            raise UsageError(f"option {shown(key)} is unknown for {name}; {hint}")
    check_options(cls, overrides)


def model_info(name: str, *, test_size: int | None = None, **overrides: Any) -> ModelInfo:
    """Parameters, multiply-adds, sizes and regularization of a model, without allocating its weights.

    Args:
        name: one of :func:`list_models`.
        test_size: side of the images that multiply-adds are counted for, in pixels; None: the variant's.
        overrides: as of :func:`build_model`.

    Raises:
        UsageError: unknown name or override, or a wrong value.

    Example:
        >>> info = model_info("nf_resnet26_small")
        >>> info.params, info.macs, info.test_size
        (563008, 42903552, 32)
        >>> model_info("nf_resnet26_small", depths=(2, 3, 4)).params
        633409
    """
    if name in _UNETS:
        return _unet_info(name, test_size, overrides)
    cls, variant = lookup(name)
    _check_overrides(name, cls, overrides)
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}
    variant = variant | given
    numbers = ("depths", "train_size", "test_size", "drop_rate", "stochdepth_rate")
    cost = _complexity(cls, tuple((k, v) for k, v in variant.items() if k not in numbers))
    defaults = {k: v.default for k, v in inspect.signature(cls.__init__).parameters.items()}
    depths, size = variant["depths"], test_size or variant["test_size"]
    if len(depths) != len(variant["widths"]):
        raise UsageError(f"depths (={list(depths)}) must be as many as the {len(variant['widths'])} widths")
    return ModelInfo(
        name=name,
        family=cls.family,
        widths=variant["widths"],
        depths=depths,
        params=cost.params(depths),
        macs=cost.macs(depths, size),
        macs_executed=cost.macs_executed(depths, size),
        train_size=variant["train_size"],
        test_size=size,
        drop_rate=variant.get("drop_rate", defaults["drop_rate"]),
        stochdepth_rate=variant.get("stochdepth_rate", defaults["stochdepth_rate"]),
    )


def _unet_info(name: str, test_size: int | None, overrides: Mapping[str, Any]) -> ModelInfo:
    """The numbers of a U-Net, at the classes and channels that it has by itself."""
    cls, variant = lookup_unet(name)
    _check_overrides(name, cls, overrides)
    size = test_size or variant["test_size"]
    options = {k: v for k, v in variant.items() if k not in ("train_size", "test_size")} | dict(overrides)
    with torch.device("meta"):
        model = cls(**options)
    macs = count_macs(model, (model.in_chans, *(size,) * model.dims))
    widths, depths = tuple(options["widths"]), tuple(options["depths"])
    params = sum(p.numel() for p in model.parameters())
    rates = model.dropout.p, options.get("stochdepth_rate", 0.0)
    return ModelInfo(name, cls.family, widths, depths, params, macs, macs, variant["train_size"], size, *rates)


@functools.cache
def _complexity(cls: type[ResidualNet], structure: tuple[tuple[str, Any], ...]) -> Complexity:
    """Shared by variants that differ in depth alone."""
    options = dict(structure)
    with torch.device("meta"):
        short = cls(depths=(2,) * len(options["widths"]), **options)
    counted_at, reduction = getattr(cls, "counted_at", None), short.feature_info[-1]["reduction"]
    return Complexity(short, options.get("in_chans", 3), counted_at or reduction, proportional=counted_at is None)


def lookup(name: str) -> tuple[type[ResidualNet], dict[str, Any]]:
    """A model's class and its arguments; UsageError with the nearest names if the name is unknown."""
    if name in _UNETS:
        raise UsageError(f"model.name (={name}) is a U-Net, for segmentation; it has no classifier of whole images")
    if name not in _VARIANTS:
        hint = did_you_mean(name, [*_VARIANTS, *_UNETS], "`normfree models` lists them")
        raise UsageError(f"model {shown(name)} is unknown; {hint}")
    return _VARIANTS[name]


def test_crop(config: Mapping[str, Any]) -> Literal["squash", "centre"]:
    """How a :func:`default_cfg` prepares test images: "squash" or "centre", see :class:`.DataConfig`."""
    return "centre" if config.get("crop_mode") == "center" else "squash"


vars(test_crop)["__test__"] = False  # its name starts with test_, but it is no test


def default_cfg(name: str) -> dict[str, Any]:
    """timm's ``default_cfg`` of a model, for 1000 classes and 3 channels.

    ``crop_mode="squash"``: the evaluation of NFNets resizes to 32 px more than the size and ignores the aspect ratio.
    ``"center"``, for all other families: it crops the middle square, 32 px less than the shorter side at that scale.

    Raises:
        UsageError: unknown name.
    """
    cls, variant = lookup(name)
    train, test = variant["train_size"], variant["test_size"]
    small = cls is nf_resnet.NFResNet and STEM_STRIDES.get(variant.get("stem", ""))
    reduction = small * 2 ** (len(variant["widths"]) - 1) if small else 32
    deep = cls in (nfnet.NFNet, bn_nfnet.BNNFNet) or variant.get("stem") == "4x 3x3"
    cfg = dict(
        architecture=name,
        num_classes=1000,
        input_size=(3, train, train),
        test_input_size=(3, test, test),
        pool_size=(-(-train // reduction),) * 2,
        test_pool_size=(-(-test // reduction),) * 2,
        crop_pct=train / (train + 32.01),  # timm rounds the resized side down
        test_crop_pct=test / (test + 32.01),
        crop_mode="squash" if cls is nfnet.NFNet else "center",
        interpolation="bicubic",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        first_conv="stem.conv0" if deep else "stem.conv",
        classifier="head.fc",
        license="apache-2.0",
        paper_ids=cls.paper,
        origin_url=ORIGIN,
    )
    published = PUBLISHED.get(name)
    if published is not None:
        cfg |= dict(hf_hub_id=published.hub, description=f"trained by {published.source}")
        cfg |= dict(crop_mode="squash") if published.squash else {}
        if published.crop is not None:
            cfg |= dict(crop_pct=published.crop, test_crop_pct=published.crop)
        if published.mean is not None:
            cfg |= dict(mean=(published.mean,) * 3, std=(published.mean,) * 3)
    return cfg
