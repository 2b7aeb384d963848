"""Published weights: how they reach a model."""

from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..models import ResidualNet, registry
from ..models.published import PUBLISHED, Published
from .haiku import load_haiku
from .timm import load_timm, read_timm


def create_model(
    name: str,
    *,
    pretrained: bool | str | Path = False,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_rate: float | None = None,
    stochdepth_rate: float | None = None,
    **overrides: Any,
) -> ResidualNet:
    """A model by name: (N, in_chans, H, W) -> (N, num_classes), freshly initialized or with published weights.

    Args:
        name: one of :func:`list_models`.
        pretrained: True fetches the weights that timm publishes on the Hugging Face hub (into huggingface_hub's cache,
            which checks their hash) and converts them; a path takes them from that file instead, which may also be the
            authors' ``.npz``.
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
    if isinstance(pretrained, bool):
        return load_pretrained(model, name) if pretrained else model
    return _load(model, pretrained)


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

    try:
        return Path(huggingface_hub.hf_hub_download(published.hub, "model.safetensors", library_name="normfree"))
    except Exception as error:  # no network, a proxy, no such file, a full disk: each in an exception of its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(
            f"weights {published.hub} cannot be fetched: {reason}; download {published.url} where there is a network, "
            'and pass its path: create_model(name, pretrained="model.safetensors")'
        ) from error


def _load(model: ResidualNet, path: str | Path) -> ResidualNet:
    """Fill a model from a file of 1000 classes and 3 channels, adapting classifier and first convolution."""
    classes, pool, channels = model.num_classes, model.head.global_pool, model.in_chans
    authors = str(path).endswith(".npz")
    if authors and channels != 3:
        raise UsageError(f"the authors' weights are of 3 channels, not in_chans (={channels})")
    if classes != 1000:
        model.reset_classifier(1000, "avg")
    if authors:
        load_haiku(model, path)
    else:
        state = read_timm(path)
        if channels != 3:
            state = _adapted(state, channels)
        load_timm(model, state)
    if classes != 1000:
        model.reset_classifier(classes, pool)
    return model


def _adapted(state: dict[str, Any], channels: int) -> dict[str, Any]:
    from timm.models import adapt_input_conv  # on demand: it takes seconds

    first = next((name for name in ("stem.conv1.weight", "stem.conv.weight") if name in state), None)
    return state if first is None else state | {first: adapt_input_conv(channels, state[first])}
