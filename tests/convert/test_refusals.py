"""One line for each thing that cannot be converted, which names the place."""

import pytest
import torch
import torch.nn.functional as F
from foreign_blocks import WIDTH, Net, PostActivation, collect, conv
from torch import nn

from normfree import UsageError
from normfree.convert import convert

SHAPE = (2, 3, 8, 8)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = conv(WIDTH, WIDTH), nn.BatchNorm2d(WIDTH)


class Decides(Block):
    def forward(self, x):
        h = self.bn(self.conv(x))
        return x + h if h.sum() > 0 else x


class NormTwice(Block):
    def forward(self, x):
        return self.bn(self.conv(self.bn(self.conv(x))))


class ConvTwice(Block):
    def forward(self, x):
        return self.bn(self.conv(self.conv(x)))


class Functional(Block):
    def forward(self, x):
        x = F.batch_norm(self.conv(x), self.bn.running_mean, self.bn.running_var, training=self.training)
        return self.bn(self.conv2(x)) if hasattr(self, "conv2") else self.bn(x)


class Tied(Block):
    def __init__(self):
        super().__init__()
        self.other = conv(WIDTH, WIDTH)
        self.other.weight = self.conv.weight

    def forward(self, x):
        return self.bn(self.conv(x)) + self.other(x)


class Attends(Block):
    def forward(self, x):
        h = self.bn(self.conv(x)).flatten(2)
        return x + (h @ h.transpose(1, 2) @ h).view_as(x)


class OtherInTraining(Block):
    def forward(self, x):
        h = self.bn(self.conv(x))
        return torch.sin(h) if self.training else h


class UnknownNorm(Block):
    class OddNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return x / x.std() * self.gain

    def __init__(self):
        super().__init__()
        self.odd = self.OddNorm()

    def forward(self, x):
        return self.odd(self.bn(self.conv(x)))


class Parametrized(Block):
    def __init__(self):
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(self.conv)

    def forward(self, x):
        return self.bn(self.conv(x))


REFUSED = {
    "control flow": (Decides, r"^blocks\.0 \(Decides\) cannot be read as a graph"),
    "norm twice": (NormTwice, r"blocks\.0\.bn: this BatchNorm2d is used 2 times"),
    "shared layer": (ConvTwice, r"blocks\.0\.conv: this Conv2d is shared: it is used 2 times"),
    "functional": (Functional, r"blocks\.0: it calls the function batch_norm"),
    "tied": (Tied, r"blocks\.0\.conv: its weight is tied to blocks\.0\.other\.weight"),
    "attention": (Attends, r"blocks\.0: attention needs its normalization"),
    "training": (OtherInTraining, r"^blocks\.0 computes something else in training"),
    "unknown": (UnknownNorm, r"blocks\.0\.odd: OddNorm is no normalization that is known"),
    "parametrized": (Parametrized, r"blocks\.0\.conv: its weight is parametrized"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_rebuild_is_refused_in_one_line(case):
    kind, message = REFUSED[case]
    with pytest.raises(UsageError, match=message) as error:
        convert(Net(kind()), SHAPE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("case", ["norm twice", "shared layer", "functional", "tied"])
def test_so_is_keeping_it(case):
    kind, message = REFUSED[case]
    with pytest.raises(UsageError, match=message):
        convert(collect(Net(kind())), SHAPE, mode="keep")


@pytest.mark.parametrize("case", ["control flow", "norm twice", "attention", "unknown"])
def test_the_rest_is_converted_when_it_is_left(case):
    new = convert(Net(REFUSED[case][0](), PostActivation()), SHAPE, leave=["blocks.0"]).model
    assert isinstance(new.get_submodule("blocks.0.bn"), nn.BatchNorm2d)
    assert not [m for m in new.get_submodule("blocks.1").modules() if isinstance(m, nn.BatchNorm2d)]


def test_statistics_that_were_never_collected():
    with pytest.raises(UsageError, match=r"stem_bn: its running statistics were never collected"):
        convert(Net(PostActivation()), SHAPE, mode="keep")
    net = collect(Net(PostActivation()))
    net.stem_bn = nn.BatchNorm2d(WIDTH, track_running_stats=False)
    with pytest.raises(UsageError, match=r"stem_bn: it has no running statistics"):
        convert(net, SHAPE, mode="keep")
    net = collect(Net(PostActivation()))
    net.blocks[0].bn1.running_var[0] = float("nan")
    with pytest.raises(UsageError, match=r"blocks\.0\.bn1: its running statistics are not finite"):
        convert(net, SHAPE, mode="keep")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(mode="fold"), r"mode \(='fold'\) must be"),
        (dict(leave="blocks"), r"leave \(='blocks'\) must be a list"),
        (dict(leave=["nowhere"]), r"leave \(='nowhere'\) names no module of Net"),
        (dict(freeze=["stem"]), r"freeze .* is for mode='keep'"),
        (dict(alpha=float("nan")), r"alpha \(=nan\) must be a finite number"),
    ],
)
def test_arguments(arguments, message):
    with pytest.raises(UsageError, match=message):
        convert(Net(PostActivation()), SHAPE, **arguments)


def test_examples():
    with pytest.raises(UsageError, match="must be a tensor, several, or a shape"):
        convert(Net(PostActivation()), "images")
    with pytest.raises(UsageError, match=r"fails on example of shape \(32, 1, 8, 8\) at stem: Given groups=1"):
        convert(Net(PostActivation()), (4, 1, 8, 8))
    with pytest.raises(UsageError, match="has no normalization that could be taken out"):
        convert(nn.Sequential(nn.Conv2d(3, 8, 3)), SHAPE)
    with pytest.raises(UsageError, match=r"takes a torch\.nn\.Module, not a int"):
        convert(3, SHAPE)


def test_an_error_leaves_the_modes_as_they_were():
    net = Net(PostActivation(), Decides()).eval()
    with pytest.raises(UsageError):
        convert(net, SHAPE)
    assert not any(module.training for module in net.modules())
