"""The accountants: Opacus' own numbers, a case that is known, and a budget that is kept."""

import math
import sys
import warnings

import pytest
from scipy.special import ndtr

from normfree import UsageError
from normfree.private import Ledger, PrivateConfig, epsilon_of, noise_for

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from opacus.accountants import PRVAccountant, RDPAccountant
    from opacus.accountants.utils import get_noise_multiplier
KINDS = dict(prv=PRVAccountant, rdp=RDPAccountant)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.1, 0.02, 300), (0.7, 0.1, 20), (4.0, 0.5, 100)])
def test_epsilon_is_that_of_opacus_step_by_step(kind, noise, rate, steps):
    accountant = KINDS[kind]()
    for _ in range(steps):
        accountant.step(noise_multiplier=noise, sample_rate=rate)
    assert epsilon_of([[noise, rate, steps]], 1e-5, kind) == accountant.get_epsilon(1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_rates_and_noise_may_change(kind):
    accountant = KINDS[kind]()
    for noise, rate, steps in ((1.0, 0.01, 50), (2.0, 0.02, 30), (1.0, 0.01, 20)):
        for _ in range(steps):
            accountant.step(noise_multiplier=noise, sample_rate=rate)
    spent = [[1.0, 0.01, 50], [2.0, 0.02, 30], [1.0, 0.01, 20]]
    assert epsilon_of(spent, 1e-5, kind) == accountant.get_epsilon(1e-5)


@pytest.mark.filterwarnings("ignore")
def test_the_noise_is_that_of_opacus():
    how = dict(target_epsilon=3.0, target_delta=1e-5, sample_rate=0.05, steps=100, accountant="rdp")
    assert noise_for(3.0, 1e-5, rate=0.05, steps=100, accountant="rdp") == get_noise_multiplier(**how)


def gaussian_delta(epsilon: float, noise: float) -> float:
    """Of the Gaussian mechanism, exactly (Balle & Wang 2018, arXiv:1805.06530, theorem 8)."""
    return ndtr(0.5 / noise - epsilon * noise) - math.exp(epsilon) * ndtr(-0.5 / noise - epsilon * noise)


@pytest.mark.parametrize("noise", [0.6, 1.0, 4.0])
def test_one_step_with_all_images_is_the_gaussian_mechanism(noise):
    low, high = 0.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(middle, noise) > 1e-5 else (low, middle)
    assert low <= epsilon_of([[noise, 1.0, 1]], 1e-5, "prv") <= low + 0.02  # its error is 0.01
    assert low <= epsilon_of([[noise, 1.0, 1]], 1e-5, "rdp") <= 1.15 * low  # an upper bound that is not tight


@pytest.mark.parametrize("kind", KINDS)
def test_the_noise_keeps_the_budget_and_wastes_little(kind):
    for epsilon, rate, steps in ((8.0, 0.1, 60), (0.5, 0.01, 50)):
        noise = noise_for(epsilon, 1e-5, rate=rate, steps=steps, accountant=kind)
        assert 0 <= epsilon - epsilon_of([[noise, rate, steps]], 1e-5, kind) <= min(0.01, epsilon / 10)


def test_a_budget_that_no_noise_keeps():
    with pytest.raises(UsageError, match=r"^private.epsilon \(=0.05\) is kept by no noise .* rdp accountant"):
        noise_for(0.05, 1e-5, rate=0.01, steps=50, accountant="rdp")  # its orders end at 63


def test_the_tighter_accountant_needs_less_noise():
    both = [noise_for(2.0, 1e-5, rate=0.05, steps=200, accountant=kind) for kind in ("prv", "rdp")]
    assert both[0] < both[1]


def ledger(**options):
    return Ledger(PrivateConfig(**{"epsilon": 2.0, "noise_multiplier": 1.0, "accountant": "rdp", **options}), 0.01)


def test_a_ledger_counts_and_keeps_the_budget():
    book = ledger()
    assert book.epsilon() == 0
    for _ in range(3):
        book.record()
    assert (book.spent, book.steps) == ([[1.0, 0.01, 3]], 3)
    left = book.steps_left(10_000)
    book.check(left)
    with pytest.raises(UsageError, match=rf"than private.epsilon \(=2.0\) allows; {left + 3} steps would not"):
        book.check(left + 1)
    assert book.epsilon(left) <= 2.0 < book.epsilon(left + 1)


def test_what_was_spent_with_other_settings_counts():
    book = ledger()
    book.spent = [[0.8, 0.01, 100]]
    assert book.epsilon(7) == epsilon_of([[0.8, 0.01, 100], [1.0, 0.01, 7]], 1e-5, "rdp")
    book.record()
    assert book.spent == [[0.8, 0.01, 100], [1.0, 0.01, 1]]
    with pytest.raises(UsageError, match=r"^private.noise_multiplier must be set"):
        ledger(noise_multiplier=None)


def test_without_opacus(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    for call in (lambda: epsilon_of([[1.0, 0.01, 1]], 1e-5), lambda: noise_for(1.0, 1e-5, rate=0.1, steps=1)):
        with pytest.raises(UsageError, match=r'^private.epsilon needs Opacus .*: pip install "normfree\[private\]"'):
            call()
    assert epsilon_of([], 1e-5) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("epsilon", 0), ("epsilon", -1.0), ("delta", 0), ("delta", 1.0), ("max_norm", 0), ("max_norm", math.inf),
     ("noise_multiplier", 0), ("augmentations", 0), ("augmentations", 2000)],
)  # fmt: skip
def test_settings_out_of_range(name, value):
    with pytest.raises(UsageError, match=rf"^private\.{name} \(={value}\) must be "):
        PrivateConfig(**{name: value})
