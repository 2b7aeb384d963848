"""The fully convolutional network for semantic segmentation (NF-ResNets, appendix H.1)."""

from torch import Tensor, nn

from ...errors import UsageError
from ...nn import Activation, Role, WSConv2d
from ..backbone import activation_of, check_width, feature_scale, last_conv
from ..body import ResidualNet
from .network import DenseNet


class FCNHead(nn.Module):
    """Two 3x3 convolutions of dilation 6 and a 1x1 classifier: (N, in_features, H, W) -> (N, num_classes, H, W).

    Source: NF-ResNets, appendix H.1, fully convolutional; 256 channels as in "Momentum Contrast" (arXiv:1911.05722),
    which it follows.

    Args:
        act: the family's activation; its gamma is folded into the convolution that follows.
        scale: constant that brings the input to variance 1, folded likewise.
        init_std: standard deviation of the classifier's initial weight.
    """

    parameter_roles = {"classifier.weight": Role.CLASSIFIER}

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        width: int = 256,
        dilation: int = 6,
        act: Activation,
        scale: float = 1.0,
        init_std: float = 0.01,
    ):
        super().__init__()
        self.conv0 = WSConv2d(in_features, width, 3, dilation=dilation, input_scale=scale)
        self.act0 = act.clone()
        self.conv1 = WSConv2d(width, width, 3, dilation=dilation, input_scale=act.gamma)
        self.act1 = act.clone()
        self.gamma = act.gamma
        self.classifier = last_conv(width, num_classes, 1, init_std)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.conv1(self.act0(self.conv0(x))))
        return self.classifier(x * self.gamma)


def segmenter(backbone: ResidualNet, num_classes: int, *, width: int | None = None) -> DenseNet:
    """The paper's fully convolutional network (NF-ResNets, H.1) on a backbone, whose classifier is removed.

    Args:
        backbone: of ``create_model(..., output_stride=16)`` for the last stage's stride 1 and dilation 2.
        width: channels of the head; None: 256.

    Raises:
        UsageError: ``num_classes`` below 2, a width out of range.

    Example:
        >>> backbone = build_model("nf_resnet26_small")
        >>> segmenter(backbone, num_classes=5, width=16)(torch.randn(1, 3, 32, 32)).shape
        torch.Size([1, 5, 32, 32])
    """
    if num_classes < 2:
        raise UsageError(f"num_classes (={num_classes}) must be at least 2 for segmentation")
    check_width(width)
    act, scale = activation_of(backbone), feature_scale(backbone)
    head = FCNHead(backbone.num_features, num_classes, width=width or 256, act=act, scale=scale)
    return DenseNet(backbone, head)
