"""Models with published weights."""

import socket
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..errors import UsageError, did_you_mean
from ..models import ResidualNet, registry
from ..models.published import PUBLISHED, Published
from .carry import carry, warn
from .convert import shapes_of, sizes_in
from .file import PUBLISHED_OF, Weights, read_weights_file, weights_of


def create_model(
    name: str,
    *,
    pretrained: bool | str | Path | Mapping[str, Any] | None = False,
    weights: str | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    drop_rate: float | None = None,
    stochdepth_rate: float | None = None,
    **overrides: Any,
) -> ResidualNet:
    """A model by name: (N, in_chans, H, W) -> (N, num_classes), freshly initialized or with published weights.

    Args:
        name: one of :func:`list_models`.
        pretrained: False or None: none. True downloads the weights that timm publishes on the Hugging Face hub (into
            huggingface_hub's cache, which checks their hash) and converts them. A path reads them from a file of any
            program: ``.safetensors``, ``torch.save`` (.pth, .pth.tar, .pt, .bin, .ckpt), the authors' ``.npz``. A
            state dict is used like such a file. A warning names what was left out.
        weights: "ema" or "raw" if the file has both; None takes the average, with a warning.
        num_classes: None takes the number of the pretrained weights, or 1000 without them. 0 gives pooled features
            instead of logits. If pretrained weights have another number, the classifier is new, with a warning.
        in_chans: channels of the images; None takes the number of the pretrained weights, or 3 without them. If
            pretrained weights have another number, the first convolution is adapted such that images whose channels
            are equal give the same output, with a warning.
        drop_rate, stochdepth_rate: None takes the variant's.
        overrides: further arguments of the family's class, for example ``activation="silu"``, ``depths=(1, 1, 1, 1)``,
            ``output_stride=8``.

    Raises:
        UsageError: unknown name or override (the nearest ones are suggested), a value out of range, no published
            weights of this name, or a failed download (the message says how to do it by hand).

    Example:
        >>> model = create_model("nf_resnet26_small", num_classes=10)
        >>> model(torch.randn(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """
    rates = dict(drop_rate=drop_rate, stochdepth_rate=stochdepth_rate)
    loaded, classes, channels = _pretrained(name, pretrained, weights, overrides)
    classes = classes if num_classes is None else num_classes
    channels = channels if in_chans is None else in_chans
    model = registry.build_model(name, num_classes=classes, in_chans=channels, **rates, **overrides)
    return model if loaded is None else _carried(model, loaded)


def _pretrained(
    name: str, pretrained: Any, weights: str | None, overrides: Mapping[str, Any]
) -> tuple[Weights | None, int, int]:
    """The weights of ``pretrained=``, if any, and their classes and channels."""
    if weights not in (None, "ema", "raw"):
        raise UsageError(f'weights (={weights!r}) must be "ema" or "raw"')
    if pretrained is None or pretrained is False:
        if weights:
            raise UsageError(f"weights (={weights!r}) chooses among those of a file; pass pretrained=FILE")
        return None, 1000, 3
    with torch.device("meta"):
        plain = registry.build_model(name, **{k: v for k, v in overrides.items() if k != "global_pool"})
    loaded = _load(name, pretrained, weights)
    return loaded, *sizes_of(plain, loaded)


def _load(name: str, pretrained: Any, weights: str | None) -> Weights:
    if isinstance(pretrained, Mapping):
        return weights_of(pretrained, "pretrained", weights)
    if pretrained is True and weights:
        raise UsageError(f"weights (={weights!r}) chooses among those of a file; published weights are one set")
    if pretrained is True:
        return published_weights(name)
    if not isinstance(pretrained, str | Path) or not str(pretrained):
        raise UsageError(f"pretrained (={pretrained!r:.60}) must be True, False, a file, or a state dict")
    return read_weights_file(pretrained, weights)


def load_pretrained(model: ResidualNet, name: str) -> ResidualNet:
    """Fill a model with the published weights of ``name``; a warning says if classifier or stem are not theirs.

    Raises:
        UsageError: none are published, the download fails, or they are of another architecture.

    Example:
        >>> load_pretrained(create_model("nfnet_f0"), "nfnet_f0")  # doctest: +SKIP
    """
    return _carried(model, published_weights(name))


def published_weights(name: str) -> Weights:
    """The published weights of a model by name, downloaded if necessary.

    Raises:
        UsageError: none are published, or the download fails.
    """
    weights = read_weights_file(_fetched(_published(name)))
    return replace(weights, origin=f"{PUBLISHED_OF}{name}")


def sizes_of(model: ResidualNet, weights: Weights) -> tuple[int, int]:
    """Classes (0: no classifier) and channels of weights for such a model."""
    return sizes_in(model, shapes_of(weights.tensors, weights.form), weights.form)


def _carried(model: ResidualNet, weights: Weights) -> ResidualNet:
    warn(weights, carry(model, weights), stacklevel=3)
    return model


def _published(name: str) -> Published:
    if name not in PUBLISHED:
        available = f"there are some of {', '.join(PUBLISHED)}"
        hint = available if name in registry.list_models() else did_you_mean(name, PUBLISHED, available)
        raise UsageError(f"no weights of {name} are published; {hint}")
    return PUBLISHED[name]


def _fetched(published: Published) -> Path:
    """The file in huggingface_hub's cache, downloaded if necessary."""
    import huggingface_hub  # on demand: it takes half a second

    cached = huggingface_hub.try_to_load_from_cache(published.hub, "model.safetensors")
    if isinstance(cached, str):
        return Path(cached)
    level = huggingface_hub.logging.get_verbosity()
    huggingface_hub.logging.set_verbosity_error()  # a line per attempt otherwise
    try:
        _reach(huggingface_hub.constants.ENDPOINT)
        return Path(huggingface_hub.hf_hub_download(published.hub, "model.safetensors", library_name="normfree"))
    except Exception as error:  # no network, a proxy, no such file, a full disk: all of different types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"weights {published.hub} cannot be fetched ({reason[:160]}); download {published.url} where there is a "
            'network; then create_model(name, pretrained="model.safetensors") takes it, or on the command line '
            "`normfree convert model.safetensors FILE --to normfree` makes a file for every command"
        ) from error
    finally:
        huggingface_hub.logging.set_verbosity(level)


def _reach(endpoint: str) -> None:
    """Fail at once without a network; the hub's client would try for half a minute."""
    address = urllib.parse.urlsplit(endpoint)
    if not urllib.request.getproxies() and address.hostname:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname, port), timeout=10).close()
