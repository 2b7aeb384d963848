"""NFNet's ladder: the networks between an SE-ResNeXt-D and NFNet, as options of NFNet (NFNets, tables 2 and 6)."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ..errors import UsageError
from .nfnet import VARIANTS
from .resnet import WIDTHS

NFNET_LADDER: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "baseline": dict(widths=WIDTHS, spatial_convs=1),
        "width": dict(spatial_convs=1),
        "second_conv": dict(),
        "default_width": dict(widths=WIDTHS),
    }
)
"""The options of ``nfnet_f0`` to ``nfnet_f7`` at each rung, in the order of the tables.

"baseline" is an SE-ResNeXt-D with GELU, NFNet's depths, stem and group width of 128, a ResNet's widths and one 3x3
convolution per branch; "width" has NFNet's widths; "second_conv" is NFNet itself, on which the rows "+ MixUp", "+
RandAugment" and "+ CutMix" are trained, too; "default_width" is NFNet with a ResNet's widths. The papers' code has no
network of the ladder but NFNet; these follow the text.
"""

DEPTHS = tuple(name.removeprefix("nfnet_") for name in VARIANTS if not name.endswith("_plus"))


def nfnet_rung(rung: str, depth: str = "f0", *, batch_norm: bool = False) -> tuple[str, dict[str, Any]]:
    """Name and options of a network of NFNet's ladder (NFNets, tables 2 and 6), for :func:`normfree.create_model`.

    Args:
        rung: one of :data:`NFNET_LADDER`.
        depth: "f0" to "f7".
        batch_norm: its counterpart with BatchNorm; of the rung "second_conv" it is the row "-NF, + BN".

    Raises:
        UsageError: an unknown rung or depth.

    Example:
        >>> nfnet_rung("baseline", "f1", batch_norm=True)
        ('bn_nfnet_f1', {'widths': (256, 512, 1024, 2048), 'spatial_convs': 1})
        >>> name, options = nfnet_rung("width", "f3")
        >>> round(normfree.model_info(name, **options).params / 1e6, 1)
        220.1
    """
    for option, value, known in (("rung", rung, NFNET_LADDER), ("depth", depth, DEPTHS)):
        if value not in known:
            raise UsageError(f"{option} (={value!r}) must be one of {', '.join(known)}")
    return f"{'bn_' if batch_norm else ''}nfnet_{depth}", dict(NFNET_LADDER[rung])
