"""The control beside a conversion: normalization left out, with nothing in its place."""

import pytest
import timm
import torch
from foreign_blocks import Net, PostActivation
from torch import nn

from normfree import UsageError
from normfree.convert import convert
from normfree.nn import BATCH_NORM

SHAPE = (2, 3, 16, 16)


def test_it_is_the_network_without_its_normalization():
    net = Net(PostActivation(), PostActivation()).eval()
    conversion = convert(net, SHAPE, mode="identity")
    for norm in [m for m in net.modules() if isinstance(m, BATCH_NORM)]:  # in evaluation it can be made to do nothing
        norm.eps = 0.0
    x = torch.randn(SHAPE)
    assert torch.allclose(conversion.model(x), net(x), rtol=1e-5, atol=1e-6)
    assert len(conversion.changes) == len([m for m in net.modules() if isinstance(m, BATCH_NORM)])
    assert conversion.constants == {}


def test_the_original_and_what_is_left_stay():
    net = Net(PostActivation(), PostActivation())
    new = convert(net, SHAPE, mode="identity", leave=["blocks.0"]).model
    assert isinstance(net.blocks[1].bn1, nn.BatchNorm2d)
    assert isinstance(new.blocks[0].bn1, nn.BatchNorm2d)
    assert isinstance(new.blocks[1].bn1, nn.Identity)


def test_an_activation_inside_stays():
    model = timm.create_model("test_efficientnet", num_classes=3)
    new = convert(model, (2, 3, 64, 64), mode="identity").model
    assert not [m for m in new.modules() if isinstance(m, BATCH_NORM)]
    assert len([m for m in new.modules() if isinstance(m, nn.SiLU)]) == len(
        [m for m in model.modules() if isinstance(m, nn.SiLU)]
    )


def test_an_unknown_normalization_is_refused():
    class OddNorm(nn.Module):
        def forward(self, x):
            return x / x.norm()

    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), OddNorm())
    with pytest.raises(UsageError, match="2: OddNorm is no normalization that is known"):
        convert(net, SHAPE, mode="identity")
