"""Several inputs, keyword inputs and nested outputs."""

import numpy as np
import pytest
import torch
import torchvision
from spp.hand_made import statistics
from torch import nn

from normfree import UsageError
from normfree.spp import record


class Two(nn.Module):
    """A block of two inputs: ``a + layer(b)``, times a factor."""

    def __init__(self, wrap=lambda y: y):
        super().__init__()
        self.layer, self.wrap = nn.Linear(8, 8), wrap

    def forward(self, a, b, *, factor=1.0, mask=None):
        self.kept = a + self.layer(b) * factor
        return self.wrap(self.kept if mask is None else self.kept.masked_fill(mask, 0.0))


A, B = torch.randn(4, 8), torch.randn(4, 8)


@pytest.mark.parametrize(
    "inputs",
    [
        *([A, B], (A, B), [A, {"b": B}], {"a": A, "b": B}, [A, (4, 8)], {"a": (4, 8), "b": (4, 8), "factor": 2.0}),
        *([A, B, {"mask": torch.zeros(4, 8, dtype=torch.bool)}], [A, B, {"mask": None}]),
    ],
    ids=["list", "tuple", "mixed", "dict", "with a shape", "with a setting", "with a mask", "with nothing"],
)
def test_several_inputs(inputs):
    net = Two()
    spp = record(net, inputs)
    assert spp.blocks == ["(model)"]
    assert spp.avg_var == pytest.approx([statistics(net.kept)[1]], rel=1e-5)
    assert spp.cosine[0] is not None


def test_inputs_are_not_changed_and_noise_differs_between_them():
    class Changing(Two):
        def forward(self, a, b):
            self.seen = a.clone(), b.clone()
            return super().forward(a.mul_(0), b.add_(1))

    a, net = A.clone(), Changing()
    record(net, [a, (4, 8)])
    assert torch.equal(a, A)
    record(net, [(4, 8), (4, 8)])
    assert not torch.equal(*net.seen)
    assert torch.equal(net.seen[0], torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))


def test_an_input_may_be_a_container():
    class Lists(Two):
        def forward(self, pair, named):
            return super().forward(pair[0], pair[1] + named["c"])

    assert record(Lists(), [[A, (4, 8)], {"c": B}, {}]).avg_var[0] > 0


@pytest.mark.parametrize(
    "wrap",
    [lambda y: (y, None), lambda y: {"out": y, "aux": [y.sum()]}, lambda y: ([torch.ones(4)], {"deep": {"y": y}})],
    ids=["tuple", "dict", "nested"],
)
def test_nested_outputs(wrap):
    net = Two(wrap)
    spp = record(net, [A, B], backward=True)
    assert spp.output.avg_var == pytest.approx(statistics(net.kept)[1], rel=1e-5)
    assert spp.grad_var[0] > 0.5


def test_torchvision_segmentation_puts_out_a_dict():
    torch.manual_seed(0)
    net = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=2)
    spp = record(net, (2, 3, 64, 64), backward=True)
    assert spp.output.shape == (2, 64, 64)
    assert min(spp.grad_var) > 0


def test_tokens_by_their_numbers():
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    net = nn.Sequential(nn.Embedding(50, 16), encoder)
    spp = record(net, torch.randint(50, (4, 6)), backward=True)
    assert [row.shape for row in spp.rows] == [(6, 16), (6, 16)]
    assert None not in spp.grad_var

    class Decoder(nn.TransformerDecoderLayer):
        def forward(self, tgt, memory, tgt_mask=None):
            return super().forward(tgt, memory, tgt_mask)

    inputs = dict(tgt=(4, 5, 16), memory=(4, 7, 16), tgt_mask=nn.Transformer.generate_square_subsequent_mask(5))
    spp = record(Decoder(16, 2, 32, batch_first=True), inputs, backward=True)
    assert spp.blocks == ["self_attn", "multihead_attn", "linear2"]


@pytest.mark.parametrize(
    ("conv", "shape"), [(nn.Conv1d, (4, 3, 32)), (nn.Conv2d, (4, 3, 8, 8)), (nn.Conv3d, (4, 3, 4, 6, 6))]
)
def test_sound_images_and_volumes(conv, shape):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = conv(8, 8, 3, padding=1), conv(8, 8, 3, padding=1)

        def forward(self, x):
            self.kept = x + self.b(torch.relu(self.a(x)))
            return self.kept

    net = nn.Sequential(conv(3, 8, 3, padding=1), Block(), Block())
    spp = record(net, shape, backward=True)
    np.testing.assert_allclose(spp.avg_var, [statistics(block.kept)[1] for block in net[1:]], rtol=1e-5)
    assert [row.shape for row in spp.rows] == [(8, *shape[2:])] * 2
    assert min(spp.grad_var) > 0.8  # the shortcut hands on the cotangent, of a few hundred numbers


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([A], r"does not fit Two.forward\(a, b, \*, factor=1.0, mask=None\): missing a required argument: 'b'"),
        ({"a": A, "b": B, "c": B}, "got an unexpected keyword argument 'c'"),
        ([A, (0, 8)], r"batch_or_shape\[1\] \(=\(0, 8\) \(tuple\)\) must be a tensor or a shape"),
        ({"a": A, "b": object}, r"batch_or_shape\['b'\] .* must be a tensor or a shape"),
        ([A, torch.zeros(0, 8)], r"batch_or_shape\[1\] \(a tensor of shape \(0, 8\)\) has no values"),
        ({"factor": 1.0}, "has no tensor and no shape in it"),
        ({}, "has no tensor and no shape in it"),
    ],
)
def test_inputs_that_cannot_be_used(inputs, said):
    with pytest.raises(UsageError, match=said) as error:
        record(Two(), inputs)
    assert "\n" not in str(error.value)
