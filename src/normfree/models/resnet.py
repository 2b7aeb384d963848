"""Depths and widths of all ResNets."""

from typing import Any

DEPTHS = {
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    288: (24, 24, 24, 24),
    600: (50, 50, 50, 50),
}
WIDTHS = (256, 512, 1024, 2048)
STRIDES = (1, 2, 2, 2)


def resnet_variants(name: str, **options: Any) -> dict[str, dict[str, Any]]:
    """A variant for each depth; ``name`` has a placeholder for the number of layers."""
    return {
        name.format(layers): dict(widths=WIDTHS, depths=depths, train_size=224, test_size=224, **options)
        for layers, depths in DEPTHS.items()
    }
