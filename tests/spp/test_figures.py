"""What the paper says of its figures, as statements about smaller networks: 101 layers of a quarter of the width."""

import itertools
import math
import statistics

import numpy as np
import pytest

from normfree.errors import UsageError
from normfree.spp.figures import FIGURES, NETWORKS, draw_figures, networks_of

LAYERS, SIZE, WIDTHS = 101, 128, (64, 128, 256, 512)
FIRST = slice(0, 7)  # the blocks of the first two stages, whose maps are of 32 and 16 px
# Zero padding takes 5% of a branch's variance at 32 px and 10% at 16 px, and these losses add up from block to block in
# a network without normalization ("decays slightly near the end of the network due to zero padding", section 4.2).
PADDING = 0.15


@pytest.fixture(scope="module")
def recorded():
    """Every network once."""
    return {key: network.record(LAYERS, SIZE, 2, 1, widths=WIDTHS) for key, network in NETWORKS.items()}


def shift(spp) -> np.ndarray:
    """Squared mean over variance."""
    return np.array(spp.avg_sq_mean) / np.array(spp.avg_var)


def stages(spp) -> list[slice]:
    starts = [0, *(end + 1 for end in spp.stage_ends[:-1])]
    return [slice(a, b + 1) for a, b in zip(starts, spp.stage_ends, strict=True)]


# Figure 1


def test_bn_relu_conv_has_branches_of_068_at_all_depths(recorded):
    # 1 - 1/pi = 0.682, which is what a ReLU leaves of half the second moment; 10% scatter of narrow layers
    np.testing.assert_allclose(recorded["bn"].res_avg_var, 1 - 1 / math.pi, rtol=0.1)
    assert statistics.median(recorded["bn"].res_avg_var) == pytest.approx(0.68, abs=0.015)


def test_relu_bn_conv_has_branches_of_1_and_no_mean_shift(recorded):
    np.testing.assert_allclose(recorded["bn_after"].res_avg_var, 1.0, rtol=0.08)
    assert max(recorded["bn_after"].avg_sq_mean) < 0.1  # 2 images of 4 px in the end leave 1/32 of 1 by chance


def test_squared_means_of_bn_relu_conv_grow_with_the_variance(recorded):
    spp = recorded["bn"]
    for stage in stages(spp):
        means, variances = np.array(spp.avg_sq_mean[stage]), np.array(spp.avg_var[stage])
        assert (np.diff(means) > 0).all()
        assert np.corrcoef(means, variances)[0, 1] > 0.97
    assert max(spp.avg_sq_mean) > 50 * max(recorded["bn_after"].avg_sq_mean)


@pytest.mark.parametrize(("key", "slope"), [("bn", 0.68), ("bn_after", 1.0)])
def test_the_variance_grows_linearly_and_is_reset_by_transitions(recorded, key, slope):
    spp = recorded[key]
    for stage in stages(spp):
        variance = np.array(spp.avg_var[stage])
        assert variance[0] == pytest.approx(2 * slope, rel=0.1)  # shortcut and branch
        np.testing.assert_allclose(np.diff(variance), slope, rtol=0.15)


# Figure 2


def test_weight_standardization_overlays_relu_bn_conv(recorded):
    nf, bn = recorded["nf"], recorded["bn_after"]
    np.testing.assert_allclose(nf.avg_var[FIRST], bn.avg_var[FIRST], rtol=PADDING)
    np.testing.assert_allclose(nf.res_avg_var[FIRST], 1.0, rtol=PADDING)
    # A branch gives what theory, which knows the padding, makes of its input; it counts padding as if the signal were
    # the same everywhere, while near the edge it has become smaller.
    local = [row.res_avg_var / row.theory.res_var for row in nf.rows[1:]]
    assert statistics.median(local) == pytest.approx(1.05, abs=0.1)
    assert shift(nf).max() < 0.1


def test_weight_standardization_overlays_all_depths_on_large_maps():
    # 17 blocks of 32 px maps, wide enough not to scatter
    options = dict(depths=(17,), widths=(256,))
    nf, bn = (NETWORKS[key].record(50, 128, 2, 0, **options) for key in ("nf", "bn_after"))
    np.testing.assert_allclose(nf.avg_var, bn.avg_var, rtol=0.1)
    assert nf.avg_var[-1] == pytest.approx(18, rel=0.1)


def test_he_initialization_lets_squared_means_overtake_the_variance(recorded):
    he = recorded["nf_he"]
    assert shift(he).min() > 1
    assert max(he.avg_sq_mean) > 50 * max(recorded["nf"].avg_sq_mean)
    assert max(value for value in he.res_avg_var) < 0.68  # "consistently smaller than one"
    for stage in stages(he):
        assert np.corrcoef(he.avg_sq_mean[stage], he.avg_var[stage])[0, 1] > 0.97  # it grows with depth
        assert he.avg_sq_mean[stage][-1] > 1.4 * he.avg_sq_mean[stage][0]


# Figure 6


def test_without_normalization_everything_grows_exponentially(recorded):
    plain = recorded["plain"]
    steps = np.arange(len(plain.rows))
    for values in (plain.avg_sq_mean, plain.avg_var, plain.res_avg_var):
        logarithm = np.log2(values)
        slope, offset = np.polyfit(steps, logarithm, 1)
        assert slope == pytest.approx(math.log2(1.85), abs=0.2)  # a block adds 0.68 to 1 times what it is given
        assert np.abs(logarithm - slope * steps - offset).max() < 3  # over 30 doublings
    assert plain.avg_var[-1] > 1e7


# Figure 7


@pytest.mark.parametrize("key", ["bn_linear", "nf_linear"])
def test_without_activations_means_do_not_shift(recorded, key):
    spp = recorded[key]
    assert shift(spp).max() < 0.05
    assert shift(recorded["nf_he"]).min() / shift(spp).max() > 20
    np.testing.assert_allclose(spp.res_avg_var[0], 1.0, rtol=0.2)


def test_linear_branches_fluctuate_around_1(recorded):
    np.testing.assert_allclose(recorded["bn_linear"].res_avg_var, 1.0, rtol=0.1)
    local = [row.res_avg_var / row.theory.res_var for row in recorded["nf_linear"].rows]
    assert statistics.median(local) == pytest.approx(1.0, abs=0.1)


# Figures 8 and 9


@pytest.mark.parametrize(
    ("key", "left"),
    # variance that an activation behind gamma = sqrt(2) keeps, three times; a gate of 1/2
    [("nf_sqrt2", (1 - 1 / math.pi) ** 3), ("nf_bare_se", 0.25)],
)
def test_attenuation(recorded, key, left):
    spp, healthy = recorded[key], recorded["nf"]
    local = [row.res_avg_var / row.theory.res_var for row in spp.rows[1:]]
    assert statistics.median(local) == pytest.approx(left, rel=0.15)
    ends = [spp.res_avg_var[end] for end in spp.stage_ends]
    assert all(after < before / 2 for before, after in zip([1.0, *ends], ends, strict=False))  # at each transition
    assert ends[-1] < 0.01 * healthy.res_avg_var[-1]
    first = spp.res_avg_var[stages(spp)[0]]
    assert all(after < before for before, after in itertools.pairwise(first))  # progressively
    assert [finding.kind for finding in spp.diagnose()] == ["attenuation"]


# Figures 10 and 11


def test_fixup_is_flat_in_a_stage_and_reset_between(recorded):
    spp = recorded["fixup"]
    for values in (spp.avg_var, spp.avg_sq_mean):
        for stage in stages(spp):
            assert len(set(values[stage])) == 1
        ends = [values[end] for end in spp.stage_ends]
        assert all(b < 0.7 * a for a, b in itertools.pairwise(ends))
    assert set(spp.res_avg_var) == {0.0}


def test_v1_has_branches_of_exactly_1(recorded):
    spp = recorded["v1"]
    np.testing.assert_allclose(spp.res_avg_var, 1.0, rtol=1e-3)  # but for BatchNorm's epsilon
    resets = [row.avg_var for row in spp.rows if row.transition]
    np.testing.assert_allclose(resets, 1 - 1 / math.pi, rtol=0.05)  # ReLU of two summands of variance 1
    assert all(max(spp.avg_var[stage]) == spp.avg_var[stage][-1] for stage in stages(spp))


# Numbers and drawing


def test_numbers_are_those_of_the_recordings(recorded):
    numbers = {f.number: f.measure(*[recorded[key] for key in f.networks]) for f in FIGURES.values()}
    assert list(numbers) == [1, 2, 6, 7, 8, 9, 10, 11]
    assert all(math.isfinite(value) for figure in numbers.values() for value in figure.values())
    assert numbers[1]["BN-ReLU-Conv: branch variance, median"] == statistics.median(recorded["bn"].res_avg_var)
    assert numbers[2]["He init: share of blocks whose squared mean exceeds the variance"] == 1.0
    last, first = recorded["plain"].avg_var[-1], recorded["plain"].avg_var[0]
    assert numbers[6]["growth per block of the variance"] ** 32 == pytest.approx(last / first)
    assert numbers[8]["variance behind transition 3"] == recorded["nf_sqrt2"].avg_var[30]
    assert numbers[10]["variance within a stage, largest over smallest"] == 1.0
    assert numbers[11]["branch variance, smallest"] == min(recorded["v1"].res_avg_var)


def test_each_network_is_recorded_once():
    started, finished = [], []
    settings = dict(layers=50, size=64, batch=2, seed=0)
    drawn = list(draw_figures([2, 10, 2], **settings, started=started.append, finished=lambda: finished.append(1)))
    assert [d.figure.number for d in drawn] == [2, 10, 2]
    assert started == [NETWORKS[key].label for key in ("bn_after", "nf_he", "nf", "fixup")]
    assert len(finished) == len(started) == len(networks_of([2, 10, 2]))
    assert drawn[0].plots == drawn[2].plots
    assert [spp.name for spp in drawn[0].plots] == started[:3]


def test_every_network_is_drawn_and_every_figure_has_its_own():
    assert set(networks_of(list(FIGURES))) == set(NETWORKS)
    assert len({network.label for network in NETWORKS.values()}) == len(NETWORKS)


@pytest.mark.parametrize(
    ("numbers", "layers", "message"),
    [([1, 3], 50, "figure 3 is none of 1, 2, 6, 7"), ([1], 51, r"layers \(=51\) must be one of 50, 101, 152")],
)
def test_what_there_is_not(numbers, layers, message):
    with pytest.raises(UsageError, match=message):
        list(draw_figures(numbers, layers=layers, size=32, batch=1, seed=0))


def test_inputs_too_small_for_batch_norm():
    with pytest.raises(UsageError, match=r"ReLU-BN-Conv: a batch of 1 at 32 px is too small"):
        list(draw_figures([2], layers=50, size=32, batch=1, seed=0))
