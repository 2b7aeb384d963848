"""Networks for dense prediction: a backbone, a head without normalization, and a resize to the image's size."""

from .depth import UpConv2d, UpProjection, UpProjectionHead, depth_estimator
from .network import DenseNet, resized
from .segmentation import FCNHead, segmenter

__all__ = [
    "DenseNet",
    "FCNHead",
    "UpConv2d",
    "UpProjection",
    "UpProjectionHead",
    "depth_estimator",
    "resized",
    "segmenter",
]
