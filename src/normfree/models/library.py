"""Networks of torchvision and timm by name: ``torchvision:resnet18``, ``timm:efficientnet_b0``.

Names are those of the two libraries' own lists; nothing else is imported, so that a name and options may come from a
file of unknown origin.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from ..errors import UsageError, did_you_mean
from ..nn import Role
from ..nn.roles import undeclared
from ..words import shown
from .registry import IMAGENET_MEAN, IMAGENET_STD

LIBRARIES = ("torchvision", "timm")
TRAINED = dict(torchvision="weights", timm="pretrained")  # the option of each library for trained weights
_SIZE = 224  # pixels of a side; torchvision's networks do not say theirs
_OF_DATA = ("num_classes", "in_chans", "in_channels")


def is_library(name: str) -> bool:
    """Whether a name is one of a library's network.

    Example:
        >>> is_library("timm:resnet50"), is_library("nf_resnet50")
        (True, False)
    """
    return name.partition(":")[0] in LIBRARIES and ":" in name


def build_library(
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    num_classes: int,
    in_chans: int = 3,
    trained: bool = True,
) -> nn.Module:
    """A network of torchvision or timm that classifies images: (N, in_chans, H, W) -> (N, num_classes).

    Its ``default_cfg`` has the size of images, as that of every model here, and its classifier has the role of one.

    Args:
        name: such as ``"torchvision:resnet18"``: a name of ``torchvision.models``, or of timm's list.
        options: of the library's function. ``small_images=True`` of torchvision's ResNets is a 3x3 convolution of
            stride 1 without pooling behind it, for images of 32 pixels.
        trained: False leaves trained weights out, which ``options`` may ask for (``weights="DEFAULT"`` of torchvision,
            ``pretrained=True`` of timm): others are loaded afterwards.

    Raises:
        UsageError: an unknown name, an option that the library refuses, or one that loads files.

    Example:
        >>> model = build_library("torchvision:resnet18", {"small_images": True}, num_classes=10)
        >>> model(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    library, _, own = name.partition(":")
    options = dict(options or {})
    if given := [key for key in _OF_DATA if key in options]:
        raise UsageError(f"option {given[0]} is not for {name}: the data say it")
    make = {"torchvision": _of_torchvision, "timm": _of_timm}[library]
    if not trained:
        options = {key: value for key, value in options.items() if key != TRAINED[library]}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries, about their own arguments
            model, size = _made(lambda: make(own, num_classes, in_chans, options))
    except UsageError:
        raise
    except Exception as error:  # a library's function raises what it likes
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise UsageError(f"options (={shown(options)}) do not build {name}: {reason}") from error
    if getattr(model, "aux_logits", False):
        raise UsageError(
            f"{name} has auxiliary classifiers, which are not trained here; take the option aux_logits=False"
        )
    describe(model, name, num_classes, in_chans, size)
    return model


def _made(make: Callable[[], tuple[nn.Module, int]]) -> tuple[nn.Module, int]:
    """What ``make`` returns; networks that need numbers to be built come to the meta device afterwards."""
    try:
        return make()
    except NotImplementedError:
        if torch.get_default_device() != torch.device("meta"):
            raise
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        model, size = make()
    return model.to("meta"), size


def describe(model: nn.Module, name: str, num_classes: int, in_chans: int, size: int) -> None:
    """Give a network what models here say of themselves: ``default_cfg``, and roles of all parameters.

    Parameters that are no layer's (factors of branches) have the role of gains.
    """
    last = classifier(model)
    roles = dict.fromkeys(undeclared(model), Role.GAIN)
    roles |= {name: Role.CLASSIFIER for name, parameter in model.named_parameters() if parameter is last.weight}
    vars(model)["parameter_roles"] = roles
    three = in_chans == 3
    cfg = dict(
        architecture=name,
        num_classes=num_classes,
        input_size=(in_chans, size, size),
        test_input_size=(in_chans, size, size),
        mean=IMAGENET_MEAN if three else (0.5,) * in_chans,
        std=IMAGENET_STD if three else (0.5,) * in_chans,
        crop_mode="center",
    )
    vars(model).update(default_cfg=cfg, pretrained_cfg=cfg)


def classifier(model: nn.Module) -> nn.Linear | nn.Conv2d:
    """The layer of the logits: the last linear layer, or the last convolution where there is none.

    Raises:
        UsageError: neither is there.
    """
    for kind in (nn.Linear, nn.Conv2d):
        layers = [module for module in model.modules() if isinstance(module, kind)]
        if layers:
            return layers[-1]
    raise UsageError(f"{type(model).__name__} has no layer that could be its classifier")


def _of_torchvision(name: str, num_classes: int, in_chans: int, options: Mapping[str, Any]) -> tuple[nn.Module, int]:
    """The network and the size of its images, which torchvision does not say."""
    from torchvision import models

    options = dict(options)
    small, weights = options.pop("small_images", False), options.get("weights")
    _check_name(name, models.list_models(module=models), "torchvision")
    if not isinstance(small, bool):
        raise UsageError(f"option small_images (={shown(small)}) must be true or false")
    if weights is None:
        model = models.get_model(name, num_classes=num_classes, **options)
    else:
        known = [one.name for one in models.get_model_weights(name)] + ["DEFAULT"]
        if weights not in known:
            raise UsageError(f"option weights (={shown(weights)}) of {name} must be one of {', '.join(known)}")
        if small or in_chans != 3:
            raise UsageError(f"option weights (={weights}) is for the stem of {name} as it is, on 3 channels")
        model = models.get_model(name, **options)
        _replace(model, classifier(model), lambda old: nn.Linear(old.in_features, num_classes))
    if small:
        if not isinstance(model, models.ResNet):
            raise UsageError(f"option small_images is for the ResNets of torchvision; {name} is none")
        model.set_submodule("maxpool", nn.Identity())
    if small or in_chans != 3:
        first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        _replace(model, first, lambda old: _stem(old, in_chans, small))
    return model, 32 if small else _SIZE


def _stem(old: Any, in_chans: int, small: bool) -> nn.Conv2d:
    """A first convolution for other channels, or of 3x3 with stride 1; initialized as torchvision's ResNets are."""
    sizes = (3, 1, 1) if small else (old.kernel_size, old.stride, old.padding)
    new = nn.Conv2d(in_chans, old.out_channels, *sizes, bias=old.bias is not None)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    return new


def _replace(model: nn.Module, old: nn.Module, make: Any) -> None:
    name = next(name for name, module in model.named_modules() if module is old)
    model.set_submodule(name, make(old))


def _of_timm(name: str, num_classes: int, in_chans: int, options: Mapping[str, Any]) -> tuple[nn.Module, int]:
    """The network and the size of its images."""
    import timm
    from timm.models import build_model_with_cfg

    _check_name(name.partition(".")[0], timm.list_models(), "timm")
    reserved = {*inspect.signature(timm.create_model).parameters, *inspect.signature(build_model_with_cfg).parameters}
    if refused := sorted(options.keys() & (reserved - {"pretrained"})):  # some of them read files
        raise UsageError(f"option {refused[0]} of timm is not taken from a recipe")
    model = timm.create_model(name, num_classes=num_classes, in_chans=in_chans, **options)
    return model, vars(model)["default_cfg"]["input_size"][-1]


def _check_name(name: str, known: list[str], library: Literal["torchvision", "timm"]) -> None:
    if name not in known:
        otherwise = f"{library}.list_models()" if library == "timm" else "torchvision.models.list_models()"
        raise UsageError(
            f"model {shown(name)} of {library} is unknown; {did_you_mean(name, known, otherwise + ' lists them')}"
        )
