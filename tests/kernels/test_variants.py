"""One build for old and new processors: the same source for several sets of instructions, chosen when it is loaded."""

import platform

import pytest
import torch

from normfree import kernels
from normfree.kernels import library

VARIANTS = ("avx512", "avx2", "default")
X86 = platform.machine().lower() in ("x86_64", "amd64")


@pytest.fixture
def only(compiled, monkeypatch):
    """Loads the library for one set of instructions, for the length of a test."""

    def load(name: str) -> None:
        if name not in library.variants():
            pytest.skip(f"this processor has {library.variants()[0]}")
        monkeypatch.setenv("NORMFREE_KERNELS", name)
        loaded = library._load.__wrapped__()
        assert loaded[1] is None
        monkeypatch.setattr(library, "_load", lambda: loaded)

    return load


def test_the_best_that_there_is_is_taken(compiled, monkeypatch):
    monkeypatch.delenv("NORMFREE_KERNELS", raising=False)
    loaded, why = library._load.__wrapped__()
    assert why is None
    assert loaded.nf_instructions().decode() == library.variants()[0]


@pytest.mark.skipif(not X86, reason="other processors have one variant")
@pytest.mark.parametrize(
    ("capability", "expected"),
    [("AVX512", VARIANTS), ("AVX2", VARIANTS[1:]), ("DEFAULT", VARIANTS[2:]), ("NO AVX", VARIANTS[2:])],
)
def test_an_older_processor_takes_less(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert library.variants() == expected
    monkeypatch.setenv("NORMFREE_KERNELS", "avx512")
    if capability != "AVX512":
        assert library._load.__wrapped__() == (
            None,
            f"NORMFREE_KERNELS is avx512, and this processor has {expected[0]} (torch says)",
        )


def test_a_word_that_is_none_of_them(monkeypatch):
    monkeypatch.setenv("NORMFREE_KERNELS", "sse9")
    assert library._load.__wrapped__() == (None, "NORMFREE_KERNELS (=sse9) must be 0, 1, avx512, avx2 or default")


@pytest.mark.parametrize("name", VARIANTS)
def test_each_is_compiled_for_what_it_is_called(only, name):
    only(name)
    assert library.variant() == name


def ours(x, weight, gate):
    """Every kernel once, in float32."""
    found = {}
    for function in (kernels.gelu, kernels.gelu_tanh, kernels.silu):
        leaf = x.clone().requires_grad_()
        function(leaf).backward(torch.ones_like(x))
        found[function.__name__] = leaf.grad
    leaf = weight.clone().requires_grad_()
    standardized = kernels.fused_standardize_weight(leaf)
    (grad,) = torch.autograd.grad((standardized * weight.cos()).sum(), leaf)
    found["standardized"], found["its gradient"] = standardized.detach(), grad
    leaves = [x.clone().requires_grad_(), x.flip(0).clone().requires_grad_()]
    merged = kernels.gated_merge(*leaves, lambda mean: (mean * gate).sigmoid()[:, :, None, None])
    found["merged"] = torch.autograd.grad((merged * x.sin()).sum(), leaves)[1]
    moved, buffer, average = weight.clone(), weight.sin(), weight.cos()
    rule = dict(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01, clipping=0.02, ema_decay=0.9)
    kernels.agc_sgd_ema_([moved], [weight.sin()], [buffer], [average], **rule)
    return found | dict(moved=moved, buffer=buffer, average=average)


@pytest.mark.parametrize("name", VARIANTS)
def test_each_computes_the_same_function(only, name, monkeypatch):
    """Within rounding of float64: sums of at most 1,000 numbers of which at most 64 are added one after the other."""
    x, weight, gate = torch.randn(2, 6, 9, 7), torch.randn(8, 5, 5, 5), torch.randn(2, 6)
    only(name)
    found = ours(x, weight, gate)
    monkeypatch.setattr(library, "_load", lambda: (None, "turned off by a test"))
    exact = ours(*(part.double() for part in (x, weight, gate)))
    for which, value in found.items():
        distance = (value - exact[which]).norm() / exact[which].norm()
        assert distance < 4 * 2**-24, which


@pytest.mark.parametrize("name", VARIANTS)
def test_threads_do_not_change_a_bit(only, name):
    only(name)
    x, weight, gate = torch.randn(8, 32, 28, 28), torch.randn(96, 48, 3, 3), torch.randn(8, 32)
    one = ours(x, weight, gate)
    torch.set_num_threads(3)
    try:
        three = ours(x, weight, gate)
    finally:
        torch.set_num_threads(1)
    for which in one:
        if which != "merged":  # its gate's mean is torch's
            assert torch.equal(one[which], three[which]), which
