"""Labelled images: sources, transforms, and batches in a seeded order."""

from .autoaugment import AutoAugment
from .batch import Batch
from .config import DataConfig
from .decode import Unreadable, UnreadableImage, decode_image
from .detection import ObjectList, Objects
from .folders import image_folder, open_source, open_test
from .held_out import HeldOut, NoTestImages
from .loader import Loader
from .mixing import Mixing, soft_labels
from .poisson import Poisson, PoissonBatches
from .randaugment import RandAugment
from .resize import centre_view, evaluation_view, normalize, resize_bicubic
from .sampling import Share
from .sources import Source, digits, find_images
from .splits import ObjectSplit, PairSplit, Split, VectorSplit
from .transforms import EvalTransform, TrainTransform

__all__ = [
    "AutoAugment",
    "Batch",
    "DataConfig",
    "EvalTransform",
    "HeldOut",
    "Loader",
    "Mixing",
    "NoTestImages",
    "ObjectList",
    "ObjectSplit",
    "Objects",
    "PairSplit",
    "Poisson",
    "PoissonBatches",
    "RandAugment",
    "Share",
    "Source",
    "Split",
    "TrainTransform",
    "Unreadable",
    "UnreadableImage",
    "VectorSplit",
    "centre_view",
    "decode_image",
    "digits",
    "evaluation_view",
    "find_images",
    "image_folder",
    "normalize",
    "open_source",
    "open_test",
    "resize_bicubic",
    "soft_labels",
]
