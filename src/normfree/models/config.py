"""The ``model`` section of a recipe."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import nn

from ..errors import UsageError, check_finite
from ..words import shown
from .body import ResidualNet
from .library import TRAINED, build_library, is_library
from .options import check_options
from .registry import build_model, build_unet, list_models, lookup, lookup_unet
from .unet import UNet

Conversion = Literal["rebuild", "keep", "identity"]
CONVERSIONS: tuple[Conversion, ...] = get_args(Conversion)


@dataclass
class ModelConfig:
    """The network.

    Args:
        name: one of `normfree models`, or a network of these libraries: torchvision:NAME, timm:NAME.
        drop_rate: dropout in front of the classifier; null takes the variant's.
        stochdepth_rate: stochastic depth of the last block; null takes the variant's.
        options: further arguments of the model, for example {activation: silu, depths: [1, 1, 1, 1]};
            of a library's network, those of its function, and small_images of torchvision's ResNets.
        convert: of a library's network, what becomes of its normalization (docs/convert.md): "rebuild", standardized
            convolutions; "keep", with trained weights, folded into the layers; "identity", left out with nothing in
            its place, as a control; null, it stays.
        constants: of a rebuilt network, the factor of each layer. Leave it null: each new run finds them, and stores
            them.
    """

    name: str = ""
    drop_rate: float | None = None
    stochdepth_rate: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    convert: Conversion | None = None
    constants: dict[str, float] | None = None

    def __post_init__(self) -> None:
        self._check_library()
        for name in ("drop_rate", "stochdepth_rate"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UsageError(f"model.{name} (={value}) must be at least 0 and below 1")

    def _check_library(self) -> None:
        fields = dict(convert=self.convert, constants=self.constants)
        given = [name for name, value in fields.items() if value is not None]
        if given and self.name and not self.is_library:
            raise UsageError(
                f"model.{given[0]} is for networks of {' and '.join(TRAINED)}; model.name is {shown(self.name)}"
            )
        if self.constants and self.convert != "rebuild":
            raise UsageError(f"model.constants are for model.convert rebuild, which is {self.convert or 'null'}")
        for name, value in (self.constants or {}).items():
            check_finite(f"model.constants.{name:.80}", value)
        if self.is_library and (self.drop_rate is not None or self.stochdepth_rate is not None):
            name = "drop_rate" if self.drop_rate is not None else "stochdepth_rate"
            raise UsageError(f"model.{name} must be null for {shown(self.name)}; model.options takes the library's own")

    @property
    def is_library(self) -> bool:
        """Whether the network is torchvision's or timm's."""
        return is_library(self.name)

    def build_library(self, *, num_classes: int, in_chans: int, trained: bool) -> nn.Module:
        """The library's network with its normalization; ``trained`` as of :func:`.library.build_library`."""
        option = TRAINED[self.name.partition(":")[0]]
        if self.convert == "keep" and trained and not self.options.get(option):
            value = "DEFAULT" if option == "weights" else "true"
            raise UsageError(
                f"model.convert (=keep) goes on from trained weights: add --model.options.{option} {value}"
            )
        try:
            sizes: dict[str, Any] = dict(num_classes=num_classes, in_chans=in_chans)
            return build_library(self.name, self.options, **sizes, trained=trained)
        except UsageError as error:
            raise UsageError(f"model.{error}" if str(error).startswith("option") else str(error)) from error

    def build(self, *, num_classes: int, in_chans: int) -> ResidualNet:
        """The network, freshly initialized; raises UsageError as :func:`build_model` does."""
        if not self.name:
            raise UsageError("model.name is not given; add it to the recipe, or pass --model NAME")
        if self.is_library:
            raise UsageError(f"model.name (={shown(self.name)}) is for the classes or numbers of whole images only")
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
