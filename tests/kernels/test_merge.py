"""The merge behind Squeeze-Excite, against its equation by torch's operations."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from normfree import create_model
from normfree.functional import residual_merge
from normfree.kernels import gated_merge, merge

SHAPES = [(2, 5, 3, 4), (1, 300, 7, 7), (3, 1, 2, 2), (2, 3, 1, 1), (1, 1, 1, 1), (2, 257, 9, 8), (2, 6, 70, 70)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def gate_of(mean):
    return 1.5 * torch.sigmoid(3 * mean.flip(1) + mean**2)[:, :, None, None]


def plainly(shortcut, branch, function=gate_of):
    return residual_merge(shortcut, branch, function(branch.mean((2, 3))))


def inputs(shape, dtype=torch.float32, layout=torch.contiguous_format):
    return [torch.randn(shape).to(dtype).to(memory_format=layout).requires_grad_() for _ in range(2)]


def differ(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30)).item()


@pytest.mark.sample(0.34, by=("shape", "layout", "dtype"))  # of threads and paths
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # float32: sums of up to 4,900 terms; bfloat16: each side rounds once, torch also the gate and its product
    [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 1.5e-2)],
)
def test_output_and_gradients(either_path, threads, dtype, tolerance, shape, layout):
    maps = inputs(shape, dtype, layout)
    assert merge.supported(*maps) == (either_path == "compiled")
    out = gated_merge(*maps, gate_of)
    exact = [x.detach().double().requires_grad_() for x in maps]
    expected = plainly(*exact)
    grad = torch.randn(shape).to(dtype)
    assert out.dtype is dtype
    assert differ(out, expected) < tolerance
    found = torch.autograd.grad(out, maps, grad)
    for ours, theirs in zip(found, torch.autograd.grad(expected, exact, grad.double()), strict=True):
        assert differ(ours, theirs) < tolerance


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradcheck(either_path, layout):
    maps = inputs((2, 3, 4, 3), torch.float64, layout)
    weight = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)

    def run(shortcut, branch, weight):
        return gated_merge(shortcut, branch, lambda mean: torch.sigmoid(mean @ weight)[:, :, None, None])

    assert gradcheck(run, (*maps, weight))
    assert gradgradcheck(run, (*maps, weight))


def test_what_does_not_reach_the_mean(either_path):
    """A gate that does not depend on the branch, or through which no gradient flows."""
    for function in (lambda mean: torch.full_like(mean, 0.3)[:, :, None, None], lambda mean: gate_of(mean.detach())):
        maps = inputs((2, 5, 3, 4))
        grad = torch.randn(2, 5, 3, 4)
        ours = torch.autograd.grad(gated_merge(*maps, function), maps, grad)
        theirs = torch.autograd.grad(plainly(*maps, function), maps, grad)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("frozen", [0, 1])
def test_one_input_without_gradient(either_path, frozen):
    maps = inputs((2, 5, 3, 4))
    maps[frozen] = maps[frozen].detach()
    wanted = [x for x in maps if x.requires_grad]
    grad = torch.randn(2, 5, 3, 4)
    ours = torch.autograd.grad(gated_merge(*maps, gate_of), wanted, grad)
    torch.testing.assert_close(ours, torch.autograd.grad(plainly(*maps), wanted, grad))


def test_only_the_gate_learns(either_path):
    maps = [x.detach() for x in inputs((2, 5, 3, 4))]
    weight = torch.randn(5, requires_grad=True)
    function = lambda mean: (mean * weight)[:, :, None, None]  # noqa: E731
    ours, theirs = (torch.autograd.grad(m(*maps, function).square().sum(), weight) for m in (gated_merge, plainly))
    torch.testing.assert_close(ours, theirs)


def test_backward_twice(either_path):
    maps = inputs((2, 5, 3, 4))
    out, grad = gated_merge(*maps, gate_of), torch.randn(2, 5, 3, 4)
    first, second = (torch.autograd.grad(out, maps, grad, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_hooks_on_the_branch_see_its_whole_gradient(either_path):
    shortcut, branch = inputs((2, 5, 3, 4))
    inner, seen = branch * 1.0, []
    inner.register_hook(seen.append)
    gated_merge(shortcut, inner, gate_of).sum().backward()
    expected = torch.autograd.grad(plainly(shortcut, branch).sum(), branch)[0]
    torch.testing.assert_close(seen[0], expected)
    torch.testing.assert_close(branch.grad, expected)


def test_grad_of_another_layout_and_type(either_path):
    maps = inputs((2, 8, 3, 4), layout=torch.channels_last)
    for grad in (
        torch.randn(2, 8, 3, 4),
        torch.randn(()).expand(2, 8, 3, 4),
        torch.randn(4, 3, 8, 2).permute(3, 2, 1, 0),
    ):
        ours = torch.autograd.grad(gated_merge(*maps, gate_of), maps, grad)
        torch.testing.assert_close(ours, torch.autograd.grad(plainly(*maps), maps, grad))


def test_what_the_kernels_leave_to_torch(compiled):
    a, b = (x.detach() for x in inputs((2, 8, 3, 4)))
    last = b.to(memory_format=torch.channels_last)
    for pair in ((a, last), (a.half(), b.half()), (a, b.double()), (a[:, ::2], b[:, ::2]), (a[:1], b)):
        assert not merge.supported(*pair)
        torch.testing.assert_close(gated_merge(*pair, gate_of), plainly(*pair))
    assert not merge.supported(a[:0], b[:0])
    assert gated_merge(a[:0], b[:0], gate_of).shape == (0, 8, 3, 4)


def test_vmap_and_compile_see_torchs_operations(compiled):
    maps = [x.detach() for x in inputs((2, 3, 4, 3))]
    ours = torch.func.vmap(lambda a, b: gated_merge(a, b, gate_of))(*(x[:, None] for x in maps))[:, 0]
    torch.testing.assert_close(ours, plainly(*maps))
    gradient = torch.func.grad(lambda b: gated_merge(maps[0], b, gate_of).square().sum())(maps[1])
    b = maps[1].clone().requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(plainly(maps[0], b).square().sum(), b)[0])


def test_checkpointing(either_path):
    maps = inputs((2, 5, 3, 4))
    ours = checkpoint(lambda a, b: gated_merge(a, b, gate_of), *maps, use_reentrant=False)
    grads = torch.autograd.grad(ours.square().sum(), maps)
    torch.testing.assert_close(grads, torch.autograd.grad(plainly(*maps).square().sum(), maps))


def test_threads_do_not_change_bits(compiled):
    found, before = [], torch.get_num_threads()
    maps = inputs((3, 300, 20, 20), layout=torch.channels_last)
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        found.append(torch.autograd.grad(gated_merge(*maps, lambda m: m[:, :, None, None]).sum(), maps))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_the_gradients_of_a_network(compiled):
    """With stochastic depth and dropout, both drawn alike."""
    model = create_model("nfnet_f0", widths=(32,) * 4, depths=(1,) * 4, group_width=8, skip_gain=0.5).train()
    x = torch.randn(2, 3, 32, 32)
    torch.manual_seed(1)
    ours = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    torch.manual_seed(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge, "supported", lambda *maps: False)
        theirs = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        # skip gains' gradients nearly cancel
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item() + 1e-7)
