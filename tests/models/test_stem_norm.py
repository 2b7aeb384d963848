"""One BatchNorm behind the first convolution of an NF-RegNet (NF-ResNets, section 5.2)."""

import torch
from torch import nn

import normfree
from normfree.nn import batch_norms
from normfree.optim import param_groups

SMALL = dict(widths=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_classes=10)


def test_it_is_there_and_nowhere_else():
    model = normfree.create_model("nf_regnet_b0", stem_norm=True, **SMALL)
    assert batch_norms(model) == ["stem.norm"]
    assert batch_norms(normfree.create_model("nf_regnet_b0", **SMALL)) == []
    x = 5 * torch.randn(16, 3, 32, 32) + 2
    out = model.train().stem(x)
    assert abs(out.var().item() - 1) < 0.01  # whatever the images' contrast
    groups = param_groups(model, weight_decay=0.1)
    grouped = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    norm = model.stem.norm
    assert isinstance(norm, nn.BatchNorm2d)
    assert [grouped[id(p)] for p in (norm.weight, norm.bias)] == [0, 0]


def test_it_stays_in_the_folded_network():
    torch.manual_seed(0)
    model = normfree.create_model("nf_regnet_b0", stem_norm=True, **SMALL)
    nn.init.normal_(model.get_classifier().weight)
    model.train()(torch.randn(8, 3, 32, 32))  # statistics
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(normfree.fold(model.eval())(x), model(x), rtol=1e-4, atol=1e-4)
