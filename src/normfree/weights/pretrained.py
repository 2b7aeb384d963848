"""Published weights: how they reach a model."""

import functools
import socket
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import UsageError
from ..models import ResidualNet, registry
from ..models.published import PUBLISHED, Published
from .haiku import load_haiku
from .timm import load_timm, read_timm
from .unpickle import read_arrays


def create_model(
    name: str,
    *,
    pretrained: bool | str | Path | None = False,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_rate: float | None = None,
    stochdepth_rate: float | None = None,
    **overrides: Any,
) -> ResidualNet:
    """A model by name: (N, in_chans, H, W) -> (N, num_classes), freshly initialized or with published weights.

    Args:
        name: one of :func:`list_models`.
        pretrained: False or None: none. True fetches the weights that timm publishes on the Hugging Face hub (into
            huggingface_hub's cache, which checks their hash) and converts them; a path takes them from that file
            instead, which may also be the authors' ``.npz`` or one of ours.
        num_classes: 0 gives pooled features instead of logits. Other than 1000, a pretrained model's classifier is
            freshly initialized.
        in_chans: channels of the images. Other than 3, a pretrained first convolution is adapted as timm does: one
            channel takes the sum of the three, more repeat them.
        drop_rate, stochdepth_rate: None takes the variant's.
        overrides: further arguments of the family's class, for example ``activation="silu"``, ``depths=(1, 1, 1, 1)``,
            ``output_stride=8``.

    Raises:
        UsageError: unknown name or override (the nearest ones are suggested), a value out of range, no published
            weights of this name, or none to be had (it says what to download and where to put it).
    """
    options = dict(num_classes=num_classes, in_chans=in_chans, drop_rate=drop_rate, stochdepth_rate=stochdepth_rate)
    model = registry.create_model(name, **options, **overrides)
    if not pretrained:
        return model
    return load_pretrained(model, name) if pretrained is True else _load(model, pretrained)


def load_pretrained(model: ResidualNet, name: str) -> ResidualNet:
    """Fill a model with the published weights of ``name``, adapting classifier and first convolution.

    Raises:
        UsageError: none are published or to be had, or they are of another architecture.
    """
    return _load(model, _fetched(_published(name)))


def _published(name: str) -> Published:
    if name not in PUBLISHED:
        raise UsageError(f"no weights of {name} are published; there are some of {', '.join(PUBLISHED)}")
    return PUBLISHED[name]


def _fetched(published: Published) -> Path:
    """The file in huggingface_hub's cache, downloaded if it is not there."""
    import huggingface_hub  # on demand: it takes half a second

    cached = huggingface_hub.try_to_load_from_cache(published.hub, "model.safetensors")
    if isinstance(cached, str):
        return Path(cached)
    level = huggingface_hub.logging.get_verbosity()
    huggingface_hub.logging.set_verbosity_error()  # a line per attempt otherwise
    try:
        _reach(huggingface_hub.constants.ENDPOINT)
        return Path(huggingface_hub.hf_hub_download(published.hub, "model.safetensors", library_name="normfree"))
    except Exception as error:  # no network, a proxy, no such file, a full disk: each in an exception of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"weights {published.hub} cannot be fetched ({reason[:160]}); download {published.url} where there is a "
            'network; then create_model(name, pretrained="model.safetensors") takes it, or on the command line '
            "`normfree convert model.safetensors FILE --to normfree` makes a file for every command"
        ) from error
    finally:
        huggingface_hub.logging.set_verbosity(level)


def _reach(endpoint: str) -> None:
    """Fail at once where there is no network: the hub's client tries for half a minute."""
    address = urllib.parse.urlsplit(endpoint)
    if not urllib.request.getproxies() and address.hostname:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname, port), timeout=10).close()


def _load(model: ResidualNet, path: str | Path) -> ResidualNet:
    """Fill a model from a file of the authors', timm's or ours, adapting classifier and first convolution."""
    wanted, pool, channels = model.num_classes, model.head.global_pool, model.in_chans
    if str(path).endswith(".npz"):
        if channels != 3:
            raise UsageError(f"the authors' weights are of 3 channels, not in_chans (={channels})")
        source, classes, load = read_arrays(path), 1000, load_haiku
    else:
        source = read_timm(path)
        classes = len(source["head.fc.weight"]) if "head.fc.weight" in source else wanted
        ours = source.keys() >= dict(model.stages.named_parameters(prefix="stages")).keys()
        load = functools.partial(_load_ours, path=path) if ours else load_timm
        source = _adapted(source, channels)
    if classes != wanted:
        model.reset_classifier(classes, "avg")
    load(model, source)
    if classes != wanted:
        model.reset_classifier(wanted, pool)
    return model


def _load_ours(model: ResidualNet, state: dict[str, Tensor], path: str | Path) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UsageError(f"{path} does not fit: {' '.join(str(error).split())[:300]}") from error


def _adapted(state: dict[str, Tensor], channels: int) -> dict[str, Tensor]:
    """With a first convolution of so many channels."""
    firsts = ("stem.conv1.weight", "stem.conv0.weight", "stem.conv.weight")  # timm's and our deep stems, the others
    first = next((n for n in firsts if n in state and state[n].ndim == 4 and state[n].shape[1] in (1, 3)), None)
    if first is None or state[first].shape[1] == channels:
        return state
    from timm.models import adapt_input_conv  # on demand: it takes seconds

    return state | {first: adapt_input_conv(channels, state[first], base_chans=state[first].shape[1])}
