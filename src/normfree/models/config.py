"""The ``model`` section of a recipe."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import UsageError
from ..words import shown
from .body import ResidualNet
from .options import check_options
from .registry import build_model, build_unet, list_models, lookup, lookup_unet
from .unet import UNet


@dataclass
class ModelConfig:
    """The network.

    Args:
        name: one of `normfree models`.
        drop_rate: dropout in front of the classifier; null takes the variant's.
        stochdepth_rate: stochastic depth of the last block; null takes the variant's.
        options: further arguments of the model, for example {activation: silu, depths: [1, 1, 1, 1]}.
    """

    name: str = ""
    drop_rate: float | None = None
    stochdepth_rate: float | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("drop_rate", "stochdepth_rate"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UsageError(f"model.{name} (={value}) must be at least 0 and below 1")

    def build(self, *, num_classes: int, in_chans: int) -> ResidualNet:
        """The network, freshly initialized; raises UsageError as :func:`build_model` does."""
        if not self.name:
            raise UsageError("model.name is not given; add it to the recipe, or pass --model NAME")
        fields = dict(
            num_classes=num_classes, in_chans=in_chans, drop_rate=self.drop_rate, stochdepth_rate=self.stochdepth_rate
        )
        repeated = sorted(fields.keys() & self.options.keys())
        if repeated:
            raise UsageError(
                f"model.options must not hold {', '.join(repeated)}: fields of the recipe or the data say it"
            )
        return self._built(lookup(self.name)[0], build_model, fields)

    @property
    def is_unet(self) -> bool:
        """Whether the network answers at each place by itself."""
        return self.name in list_models(task="segmentation")

    def build_unet(self, *, num_classes: int, in_chans: int) -> UNet:
        """The same of a U-Net."""
        rates = dict(drop_rate=self.drop_rate, stochdepth_rate=self.stochdepth_rate)
        fields = dict(num_classes=num_classes, in_chans=in_chans, **rates)
        return self._built(lookup_unet(self.name)[0], build_unet, fields)

    def _built(self, cls: type[Any], build: Callable[..., Any], fields: dict[str, Any]) -> Any:
        check_options(cls, self.options, "model.options.")
        try:
            return build(self.name, **fields, **self.options)
        except (TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
            reason = " ".join(str(error).split())
            if any(reason.startswith(f"{key} (=") for key in self.options):
                raise UsageError(f"model.options.{reason}") from error
            if isinstance(error, UsageError) and (not self.options or reason.startswith("option ")):
                raise
            raise UsageError(f"model.options (={shown(self.options)}) do not build {self.name}: {reason}") from error
