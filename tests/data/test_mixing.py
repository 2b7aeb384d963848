"""MixUp and CutMix: pixels, shares, distributions, and the loss of mixed labels."""

import math

import pytest
import torch
import torch.nn.functional as F

from normfree.data.mixing import Mixing, cutmix, cutmix_window, draw_ratio, kept, mixup, soft_labels, to_uint8
from normfree.errors import UsageError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(seed))


BLACK, WHITE = torch.zeros(3, 20, 30), torch.full((3, 20, 30), 255.0)


def test_mixup_is_the_weighted_mean_in_float():
    a, b = noise(3, 9, 8), noise(3, 9, 8, seed=1)
    mixed = mixup(a, b, 0.25)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, 0.25 * a.float() + 0.75 * b.float())
    assert torch.equal(mixup(a, b, 1.0), a.float())
    assert torch.equal(mixup(a, b, 0.0), b.float())


def test_cutmix_takes_the_window_from_the_second():
    a, b = noise(3, 9, 8), noise(3, 9, 8, seed=1)
    before = a.clone()
    mixed, inside = cutmix(a, b, (2, 3, 5, 4)), torch.zeros(9, 8, dtype=torch.bool)
    inside[2:7, 3:7] = True
    assert torch.equal(mixed, torch.where(inside, b, a))
    assert torch.equal(a, before)
    assert torch.equal(cutmix(a, b, (4, 4, 0, 0)), a)
    assert torch.equal(cutmix(a, b, (0, 0, 9, 8)), b)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_ratios_are_beta_distributed(alpha):
    draws = generator()
    ratios = torch.tensor([draw_ratio(alpha, draws) for _ in range(4000)], dtype=torch.float64)
    assert ratios.min() >= 0
    assert ratios.max() <= 1
    assert abs(ratios.mean() - 0.5) < 0.035  # four standard errors at alpha 0.2
    assert abs(ratios.var() - 1 / (4 * (2 * alpha + 1))) < 0.01
    # the middle fifth, by the distribution itself: 0.2 for the uniform one, far less for small alphas
    beta = torch.linspace(0, 1, 100_001, dtype=torch.float64)[1:-1]
    density = (beta * (1 - beta)) ** (alpha - 1)
    norm = math.gamma(alpha) ** 2 / math.gamma(2 * alpha)
    middle = density[(beta > 0.4) & (beta < 0.6)].sum().item() / 100_000 / norm
    assert abs(((ratios > 0.4) & (ratios < 0.6)).double().mean().item() - middle) < 0.03


@pytest.mark.parametrize("shape", [(20, 30), (192, 192), (1, 1), (1, 9), (7, 2)])
def test_windows_lie_in_the_image_and_say_what_is_kept(shape):
    for seed in range(300):
        ratio = draw_ratio(1.0, generator(seed))
        window = cutmix_window(*shape, ratio, generator(seed))
        top, left, height, width = window
        assert 0 <= top <= top + height <= shape[0]
        assert 0 <= left <= left + width <= shape[1]
        mixed = cutmix(torch.zeros(1, *shape), torch.ones(1, *shape), window)
        assert kept(*shape, window) == pytest.approx(1 - mixed.double().mean().item(), abs=1e-12)
        assert kept(*shape, window) >= ratio - 1e-6  # sides are rounded down and clipped


def test_windows_have_the_asked_area_where_the_border_is_far():
    seen = 0
    for seed in range(200):
        top, left, height, width = cutmix_window(200, 300, 0.84, generator(seed))
        if top > 0 and left > 0 and top + height < 200 and left + width < 300:
            assert (height, width) == (80, 120)  # sqrt(0.16) of either side
            seen += 1
    assert seen > 50


def test_windows_are_centred_uniformly():
    draws = generator()
    ys, xs = torch.tensor([cutmix_window(10, 40, 0.9, draws)[:2] for _ in range(4000)]).T
    # sides of sqrt(0.1): 3 and 12 pixels; half sides of 1 and 6; starts at the border for centres 0..1 and 0..6
    assert (ys == 0).double().mean() == pytest.approx(2 / 10, abs=0.03)
    assert (xs == 0).double().mean() == pytest.approx(7 / 40, abs=0.03)
    assert ys.unique().tolist() == list(range(9))
    assert xs.unique().tolist() == list(range(34))


def test_the_extreme_ratios_take_nothing_and_nearly_everything():
    assert kept(20, 30, cutmix_window(20, 30, 1.0, generator())) == 1
    _, _, height, width = cutmix_window(20, 30, 0.0, generator(3))
    assert 10 <= height <= 20
    assert 15 <= width <= 30


def test_bytes_are_clipped_and_truncated():
    values = torch.tensor([-20.0, -0.1, 0.0, 0.99, 127.5, 254.999, 255.0, 300.0])
    assert to_uint8(values).tolist() == [0, 0, 0, 0, 127, 254, 255, 255]
    image = noise(3, 4, 4)
    assert to_uint8(image) is image


@pytest.mark.parametrize(
    ("mixing", "kinds"),
    [
        (Mixing(), ["mixup"] * 3 + ["cutmix"] * 3),
        (Mixing(), ["mixup"] * 2 + ["cutmix"] * 3),
        (Mixing(), ["cutmix"]),
        (Mixing(cutmix=0), ["mixup"] * 5),
        (Mixing(mixup=0), ["cutmix"] * 5),
        (Mixing(0, 0), [None] * 4),
    ],
)
def test_half_of_a_batch_is_mixed_up_and_the_other_half_cut_mixed(mixing, kinds):
    n = len(kinds)
    assert [mixing.kind(i, n) for i in range(n)] == kinds
    for i, kind in enumerate(kinds):
        for seed in range(20):
            mixed, ratio = mixing(BLACK, WHITE, i, n, generator(seed))
            assert 0 <= ratio <= 1
            # of black and white, the mean says how much of the first there is
            assert mixed.double().mean().item() == pytest.approx(255 * (1 - ratio), abs=1e-3)
            values = set(mixed.unique().tolist())
            if kind == "mixup":
                assert len(values) == 1
            elif kind == "cutmix":
                assert values <= {0.0, 255.0}
            else:
                assert mixed is BLACK
                assert ratio == 1


def test_each_pair_has_a_ratio_of_its_own_and_the_generator_decides():
    mixing, draws, ratios = Mixing(), generator(), []
    for i in range(40):
        state, again = torch.get_rng_state(), draws.clone_state()
        mixed, ratio = mixing(BLACK, WHITE, i, 40, draws)
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(2)
        same, same_ratio = mixing(BLACK, WHITE, i, 40, again)
        assert torch.equal(same, mixed)
        assert same_ratio == ratio
        ratios.append(ratio)
    assert len(set(ratios)) > 36


def test_overshoot_is_mixed_before_it_is_cut_off():
    over, under = torch.full((3, 4, 4), 300.0), torch.full((3, 4, 4), -50.0)
    assert to_uint8(mixup(over, under, 0.5)).unique().tolist() == [125]


@pytest.mark.parametrize(("how", "name"), [(dict(mixup=-0.1), "mixup"), (dict(cutmix=math.inf), "cutmix")])
def test_alphas_are_checked(how, name):
    with pytest.raises(UsageError, match=rf"{name} \(={how[name]}\) must be at least 0"):
        Mixing(**how)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_labels_are_the_mix_of_both_losses(smoothing):
    draws = generator()
    logits = torch.randn(6, 10, generator=draws, dtype=torch.float64)
    labels, partners = torch.randint(10, (2, 6), generator=draws)
    partners[0] = labels[0]
    ratio = torch.tensor([0.3, 0.0, 1.0, 0.5, 0.9, 0.123])
    targets = soft_labels(labels, partners, ratio, 10, smoothing)
    assert targets.shape == (6, 10)
    assert targets.dtype == torch.float32
    assert torch.allclose(targets.sum(1), torch.ones(6))

    def loss(classes: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, classes, label_smoothing=smoothing, reduction="none")

    expected = ratio * loss(labels) + (1 - ratio) * loss(partners)
    got = F.cross_entropy(logits, targets.double(), reduction="none")
    assert torch.allclose(got, expected, rtol=1e-6)  # the targets are float32


def test_soft_labels_by_hand():
    targets = soft_labels(torch.tensor([2]), torch.tensor([0]), torch.tensor([0.75]), 4, 0.2)
    assert targets[0].tolist() == pytest.approx([0.25, 0.05, 0.65, 0.05])
