"""Networks as they are deployed: folded, prepacked for the CPU, as ONNX files, as archives of ``torch.export``."""

from .archive import open_archive, to_archive
from .description import Deployed, Description, Preprocessing
from .fold import fold
from .int8 import Calibration
from .onnx_file import open_onnx, operators, to_onnx, weight_arithmetic
from .prepack import prepack
from .seal import seal
from .write import Written

__all__ = [
    "Calibration",
    "Deployed",
    "Description",
    "Preprocessing",
    "Written",
    "fold",
    "open_archive",
    "open_onnx",
    "operators",
    "prepack",
    "seal",
    "to_archive",
    "to_onnx",
    "weight_arithmetic",
]
