"""Mean and standard deviation for the normalization of images."""

from ..data import DataConfig


def image_statistics(data: DataConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel that images are normalized with."""
    rgb, others = data.channels == 3, (0.5,) * data.channels
    mean = data.mean or ((0.485, 0.456, 0.406) if rgb else others)
    std = data.std or ((0.229, 0.224, 0.225) if rgb else others)
    return tuple(mean), tuple(std)
