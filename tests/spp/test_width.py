"""Does the signal depend on the width? Planted faults, and healthy families."""

import pytest
import torch
import torchvision
from spp.diagnosed import FIGURES
from torch import nn

import normfree
from normfree import UsageError
from normfree.spp import width_check


class Residual(nn.Module):
    """``x + branch(x)``, whose two layers have weights of a variance that is a power of the fan-in."""

    def __init__(self, width, power):
        super().__init__()
        self.a, self.b = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1)
        for layer in (self.a, self.b):
            fan_in = layer.weight[0].numel()
            nn.init.normal_(layer.weight, std=0.1 * (fan_in / 64) ** (power / 2))

    def forward(self, x):
        return x + self.b(torch.relu(self.a(x)))


def residual(powers):
    return lambda width: nn.Sequential(nn.Conv2d(3, width, 1), *(Residual(width, power) for power in powers))


@pytest.mark.parametrize(("power", "slope"), [(0, 2.0), (-2, -2.0), (-1, 0.0)])
def test_slopes_are_those_of_theory(power, slope):
    """Two layers without their fan-in: the branch grows with the square of the width."""
    check = width_check(residual([power]), [16, 32, 64, 128], (4, 3, 8, 8))
    (row,) = check.rows
    assert row.slope == pytest.approx(slope, abs=0.35)
    assert row.depends == bool(slope)
    kinds = [(finding.kind, finding.blocks) for finding in check.diagnose()]
    assert kinds == ([("width", ("1",))] if slope else [])
    assert len(str(check).splitlines()) == 2


def test_the_first_block_that_depends_on_it_is_named():
    (finding,) = width_check(residual([-1, 0, -1]), [64, 16], (4, 3, 8, 8)).diagnose()
    assert finding.blocks[0] == "2"
    assert "at width 16 and" in str(finding)
    assert "must be 1 / fan-in, not a constant" in str(finding)


def made(name, **options):
    widths = dict(nfnet_f0=(1, 2, 3, 3), nf_regnet_b0=(1, 1, 2, 2)).get(name, (1, 2, 4, 8))
    if name == "nfnet_f0":
        options |= dict(group_width=8)
    return lambda width: normfree.create_model(
        name, num_classes=10, depths=(1, 2, 1, 1), widths=tuple(width * w for w in widths), **options
    )


HEALTHY = {
    name: made(name, **options)
    for name, options in [("nf_resnet50", FIGURES), ("nfnet_f0", {}), ("nf_regnet_b0", FIGURES), ("bn_resnet50", {})]
}
HEALTHY["torchvision's resnet"] = lambda width: torchvision.models.ResNet(
    torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], width_per_group=width
)


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_families(name):
    check = width_check(HEALTHY[name], [16, 64], (2, 3, 32, 32))
    assert check.diagnose() == [], str(check)


def test_a_healthy_densenet():
    def make(width):
        return torchvision.models.DenseNet(width, (2, 2), 2 * width, num_classes=10)

    check = width_check(make, [16, 64], (4, 3, 32, 32), blocks="features.denseblock?.*")
    assert len(check.rows) == 4
    assert check.diagnose() == [], str(check)


def test_what_cannot_be_checked():
    for widths, seeds in (([16], 3), ([16, 16], 3), ([16, 0], 3), ([16, 64], 1)):
        with pytest.raises(UsageError, match=r"widths|seeds"):
            width_check(residual([-1]), widths, (4, 3, 8, 8), seeds=seeds)
    with pytest.raises(UsageError, match="the network of width 64 has other blocks than that of width 16"):
        width_check(lambda width: residual([-1] * (width // 16))(width), [16, 64], (4, 3, 8, 8))


def test_random_numbers_of_the_user_are_left_alone():
    before = torch.get_rng_state()
    width_check(residual([-1]), [16, 64], (4, 3, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)
