"""Networks that find objects: Faster R-CNN and Mask R-CNN without normalization, on any network here.

Faster R-CNN: arXiv:1506.01497; Mask R-CNN: arXiv:1703.06870; both with a feature pyramid, arXiv:1612.03144. What
torchvision does between the layers (anchors, matching, proposals, suppression) is torchvision's, see :mod:`.regions`.
"""

from .detections import Detections
from .heads import BoxHead, BoxPredictor, MaskHead, MaskPredictor, ProposalHead
from .network import LOSSES, SCORE_THRESHOLD, DetectionNet, detector
from .pyramid import Pyramid

__all__ = [
    "LOSSES",
    "SCORE_THRESHOLD",
    "BoxHead",
    "BoxPredictor",
    "DetectionNet",
    "Detections",
    "MaskHead",
    "MaskPredictor",
    "ProposalHead",
    "Pyramid",
    "detector",
]
