"""torch.compile without a graph break and torch.export with a free batch size: the same function."""

import shutil

import pytest
import torch
from golden_data import relative
from small_models import CONTROLS, EFFICIENTNETS, grads, shake, small

import normfree

# The default code generator needs a C++ compiler; where there is none, the same graphs run without generated code.
BACKEND = "inductor" if shutil.which("g++") or shutil.which("clang++") else "aot_eager"

# One block per stage, two in one to show an identity shortcut: compiling takes seconds per block.
VARIANTS = {
    "nfnet_f0": (1, 1, 1, 1),
    "nf_regnet_b0": (1, 1, 1, 1),
    "nf_resnet50": (2, 1, 1, 1),
    "nf_seresnet50": (1, 2, 1, 1),
}


@pytest.fixture(params=VARIANTS)
def variant(request):
    """The variant at its own widths."""
    options = dict(num_classes=10, drop_rate=0.0, stochdepth_rate=0.0, depths=VARIANTS[request.param])
    return shake(normfree.create_model(request.param, **options).eval())


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def outputs_and_gradients(model, function, x):
    model.zero_grad()
    out = function(x)
    out.square().mean().backward()
    return out.detach(), grads(model)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param(BACKEND, marks=[pytest.mark.slow, pytest.mark.full])])
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch 2.11's own
def test_compile(variant, backend):
    """The whole graph, forward and backward; a minute each where code is generated and compiled."""
    x = torch.randn(2, 3, 64, 64)
    # float64: float32 rounding moves some ReLU's input over 0 for one seed in a few, which moves gradients by 1 %
    variant, x = variant.double(), x.double()
    expected, expected_grads = outputs_and_gradients(variant, variant, x)
    got, got_grads = outputs_and_gradients(variant, torch.compile(variant, backend=backend, fullgraph=True), x)
    assert relative(got, expected) < 1e-12  # fused sums in another order, through up to 20 layers
    for name, gradient in expected_grads.items():
        assert relative(got_grads[name], gradient) < 1e-10, name  # gradients of skip gains cancel


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch 2.11's own
def test_compile_float32(variant):
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = variant(x)
        got = torch.compile(variant, backend=BACKEND, fullgraph=True)(x)
    assert relative(got, expected) < 2e-5  # fused sums in another order, through up to 20 layers; 1e-6 was seen


@pytest.mark.parametrize("name", [*VARIANTS, *CONTROLS, *EFFICIENTNETS])
def test_trace_for_training(name, portable):
    """Dropout and stochastic depth in one graph, without the code generator."""
    model = small(name, drop_rate=0.3, stochdepth_rate=0.5).train()
    x = torch.randn(4, 3, 32, 32)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.manual_seed(1)
    expected = outputs_and_gradients(model, model, x)
    torch.manual_seed(1)
    got = outputs_and_gradients(model, compiled, x)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)  # the same kernels, so float32 rounding at most


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [*(pytest.param(n, marks=pytest.mark.full) for n in ("nfnet_f0", "nf_resnet50")), "nf_regnet_b0", "nf_seresnet50"],
)
def test_compiled_for_one_size_runs_at_another(name, portable):
    model = small(name)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for size in ((32, 32), (45, 62)):  # the second time, sizes are symbols
        x = torch.randn(2, 3, *size)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-6, atol=1e-6)  # the same kernels


def test_export_with_free_batch_size(variant, portable):
    x = torch.randn(2, 3, 64, 64)
    program = torch.export.export(variant, (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 64, 64)
        with torch.no_grad():
            got, expected = program.module()(x), variant(x)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)  # the same kernels, so float32 rounding at most


@pytest.mark.parametrize("name", [*VARIANTS, *CONTROLS, *EFFICIENTNETS])
def test_export_of_odd_sizes(name):
    model, x = small(name), torch.randn(2, 3, 45, 62)
    program = torch.export.export(model, (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    x = torch.randn(3, 3, 45, 62)
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-6, atol=1e-6)  # as above
