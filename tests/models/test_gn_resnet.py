"""The control with GroupNorm and standardized weights."""

import torch
import torch.nn.functional as F
from small_models import GROUP_NORM, blocks, small
from torch import nn

import normfree
from normfree.nn import WSConv2d

SHAPE = GROUP_NORM["gn_resnet50"] | dict(num_classes=10)


def standardized(conv):
    """Zero mean, variance 2 / fan-in: He's, behind a ReLU."""
    weight = conv.weight.double().flatten(1)
    weight = (weight - weight.mean(1, keepdim=True)) / weight.std(1, correction=0, keepdim=True)
    return (weight * (2 / weight.shape[1]) ** 0.5).view(conv.weight.shape)


def normalized(x, norm):
    return F.relu(F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps))


def test_the_block_is_what_its_formula_says():
    torch.manual_seed(0)
    block = blocks(small("gn_resnet50", squeeze_excite=False).double())[1]  # its shortcut is the identity
    x = torch.randn(2, 32, 9, 9, dtype=torch.float64)
    out = F.conv2d(normalized(x, block.bn0), standardized(block.conv0))
    out = F.conv2d(normalized(out, block.bn1), standardized(block.conv1), padding=1)
    out = F.conv2d(normalized(out, block.bn2), standardized(block.conv2))
    torch.testing.assert_close(block(x), x + out, rtol=1e-6, atol=1e-6)  # the standardization is computed in float32


def test_every_convolution_is_standardized_and_no_statistics_are_kept():
    model = small("gn_resnet50")
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d | WSConv2d)]
    assert {(type(conv), conv.bias, conv.gain) for conv in convs} == {(WSConv2d, None, None)}
    norms = [module for module in model.modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) == len(convs) - sum(block.conv_shortcut is not None for block in blocks(model))
    assert not list(model.buffers())


def test_images_do_not_depend_on_each_other():
    torch.manual_seed(0)
    model, x = small("gn_resnet50").double().train(), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(model(x), torch.cat([model(one) for one in x.split(1)]))


def test_groups_divide_the_channels():
    model = normfree.create_model("gn_resnet50", widths=(32, 96, 256, 40), depths=(1, 1, 1, 1), num_classes=10)
    groups = {norm.num_channels: norm.num_groups for norm in model.modules() if isinstance(norm, nn.GroupNorm)}
    assert groups == {8: 8, 24: 8, 64: 32, 10: 2, 32: 32, 96: 32, 256: 32, 40: 8}


def test_folded_it_is_the_same_function():
    torch.manual_seed(0)
    model, x = small("gn_resnet50"), torch.randn(2, 3, 32, 32)
    folded = normfree.fold(model)
    assert not any(isinstance(module, WSConv2d) for module in folded.modules())
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)
