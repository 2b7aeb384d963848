"""What networks for dense prediction and detection need of their backbone."""

from typing import Any

from torch import nn

from ..errors import UsageError
from ..nn import Activation
from .body import ResidualNet

MAX_WIDTH = 16384  # channels of a head


class OnBackbone(nn.Module):
    """A network on a backbone.

    Attributes:
        backbone: without its classifier; its parameters are named ``backbone.*``.
    """

    def __init__(self, backbone: ResidualNet):
        super().__init__()
        backbone.reset_classifier(0, "")  # heads take maps: nothing that pools is left
        self.backbone = backbone

    @property
    def default_cfg(self) -> dict[str, Any]:
        return self.backbone.default_cfg

    @property
    def in_chans(self) -> int:
        return self.backbone.in_chans

    def set_grad_checkpointing(self, enable: bool = True, stages: Any = None) -> None:
        """As of the backbone."""
        self.backbone.set_grad_checkpointing(enable, stages)


def activation_of(backbone: ResidualNet) -> Activation:
    """The backbone's activation, with the gamma that convolutions of standardized weights need."""
    activations = [module for module in backbone.modules() if isinstance(module, Activation)]
    return Activation(activations[-1].activation if activations else "relu")


def feature_scale(backbone: ResidualNet) -> float:
    """1 / the standard deviation that theory gives ``forward_features`` at initialization, as a block's 1 / beta.

    1 for networks whose last map already has variance 1, from a convolution or a normalization behind the last stage.
    """
    return level_scales(backbone)[-1]


def level_scales(backbone: ResidualNet) -> list[float]:
    """1 / the standard deviation of each map of ``feature_info`` at initialization, by theory, as a block's 1 / beta.

    1 for networks without a theory, and behind a final convolution, whose output has variance 1.
    """
    return [variance**-0.5 for variance in backbone.map_variances()]


def check_width(width: int | None) -> None:
    """Raise UsageError if a head's width is out of range."""
    if width is not None and not 1 <= width <= MAX_WIDTH:
        raise UsageError(f"width (={width}) must be at least 1 and at most {MAX_WIDTH}")


def last_conv(in_channels: int, out_channels: int, kernel_size: int, std: float, bias: float = 0.0) -> nn.Conv2d:
    """A plain convolution, as a classifier: weight N(0, std), every bias ``bias``."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    nn.init.normal_(conv.weight, std=std)
    if conv.bias is not None:
        nn.init.constant_(conv.bias, bias)
    return conv
