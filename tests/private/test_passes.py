"""Norms of the gradients of examples without these gradients, and weighted sums of them, in every family."""

import functools

import pytest
import torch
import torch.nn.functional as F
from example_gradients import FAMILIES, examples, network, norm_of, one_by_one
from small_models import GROUP_NORM
from torch import nn

import normfree
from normfree import UsageError, functional
from normfree.nn import SkipInit, StochasticDepth, WSConv2d
from normfree.private import ExamplePasses
from normfree.private.layers import each_gradient, squared_norm
from normfree.private.passes import _projected
from normfree.private.weights import Raw, Standardized

COUNT = 4


def passes_of(model, x, labels, **options):
    passes = ExamplePasses(model, [x], **options)
    passes.seed(lambda output: F.cross_entropy(output, labels))
    return passes


def check_norms(squares, expected, limit):
    """Of every parameter. A vector's gradient may be a sum that cancels, so its error is one of the whole norm."""
    for index, gradients in enumerate(expected):
        total = norm_of(gradients)
        for name, gradient in gradients.items():
            norm = gradient.double().norm()
            within = limit * (norm if gradient.ndim > 1 else total)
            assert (squares[name][index].sqrt() - norm).abs() <= within, (name, index)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_norms_and_sums_are_those_of_one_example_after_the_other(name, views):
    model = network(name)
    x, labels = examples(COUNT * views)
    expected = one_by_one(model, x, labels, views)
    passes = passes_of(model, x, labels, views=views)
    squares = passes.squared_norms()
    assert squares.keys() == dict(model.named_parameters()).keys()
    assert all(p.grad is None for p in model.parameters())  # nothing is summed before the second pass
    check_norms(squares, expected, 1e-12)
    factors = torch.rand(COUNT, dtype=torch.float64)
    passes.accumulate(factors)
    for key, p in model.named_parameters():
        total = sum(factor * one[key] for factor, one in zip(factors, expected, strict=True))
        size = sum(one[key].norm() for one in expected)
        assert (p.grad - total).norm() <= 1e-12 * max(size, sum(map(norm_of, expected)) / 1e3), key


@pytest.mark.parametrize("name", FAMILIES)
def test_the_sum_over_examples_is_the_gradient_of_the_batch(name):
    model = network(name, torch.float32)
    x, labels = examples(COUNT, torch.float32, size=96 if name in GROUP_NORM else 32)  # groups of more than 3 numbers
    exact = network(name)
    exact.load_state_dict(model.state_dict())
    F.cross_entropy(exact(x.double()), labels, reduction="sum").backward()
    passes = passes_of(model, x, labels)
    norms = passes.norms()
    passes.accumulate(torch.ones(COUNT))
    of_all = norm_of({key: p.grad for key, p in exact.named_parameters()})
    for (key, p), q in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert (p.grad - q.grad).norm() <= 1e-5 * max(q.grad.norm(), of_all / 100), key  # float32 through all layers
    expected = torch.stack([norm_of(one) for one in one_by_one(exact, x.double(), labels)])
    assert ((norms - expected).abs() <= 3e-6 * expected).all()


class Watched(ExamplePasses):
    """Keeps what the layers see."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.seen = []

    def _measure(self, use, x, grad):
        self.seen.append((use, x.detach().clone(), grad.clone()))
        super()._measure(use, x, grad)


def gradient_of_raw(source, layer, x, grad):
    """By autograd in float64, for one example."""
    weight = source.parameter.detach().double().requires_grad_()
    if isinstance(source, Standardized):
        gain = None if source.gain is None else source.gain.detach().double()
        scale = source.factor * (1.0 if source.scale is None else source.scale.detach().double())
        used = functional.standardize_weight(weight, gain, scale=scale, eps=source.eps, add_eps=source.add_eps)
    else:
        used = weight * source.total
    return torch.autograd.grad(layer(x.double(), used, None), weight, grad.double())[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_float32_norms_of_every_layer_by_either_way(name):
    """From the same inputs and gradients as autograd in float64: within 1e-6."""
    model = network(name, torch.float32)
    x, labels = examples(2, torch.float32)
    passes = Watched(model, [x])
    passes.seed(lambda output: F.cross_entropy(output, labels))
    passes.norms()
    sources = [use.source for use, _, _ in passes.seen]
    assert all(isinstance(source, Raw | Standardized) for source in sources)
    assert {id(source.parameter) for source in sources} == {id(p) for p in model.parameters() if p.ndim > 1}
    for use, x, grad in passes.seen:
        layer, source = use.layer, use.source
        raw = [gradient_of_raw(source, layer, x[n : n + 1], grad[n : n + 1]) for n in range(2)]
        expected = torch.stack([one.norm() for one in raw])
        for by_places in (False, True):
            if isinstance(source, Standardized):
                square, _, _ = _projected(layer, x, grad, source.parts(), 1, by_places=by_places)
            elif by_places:
                square = squared_norm(layer, x, grad, use.weight, 1, None, False) * torch.as_tensor(source.total) ** 2
            else:
                square = (each_gradient(layer, x, grad, use.weight, 1) * source.total).flatten(1).square().sum(1)
            found = square.double().sqrt()
            # a gradient along the weight or its mean is taken away by the projection, and leaves its rounding
            whole = each_gradient(layer, x, grad, use.weight, 1).double().flatten(1).norm(dim=1)
            rate = source.parts().rate.abs().max() if isinstance(source, Standardized) else abs(source.total)
            assert ((found - expected).abs() <= 1e-6 * expected + 1e-9 * whole * rate).all(), (layer, by_places)


@pytest.mark.parametrize("name", ["nfnet_f0", "nf_resnet50", "nf_cifarnet"])
def test_networks_at_their_beginning_whose_branches_add_nothing(name):
    model = network(name)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, SkipInit):
                module.skip_gain.zero_()
    x, labels = examples(COUNT)
    squares = passes_of(model, x, labels).squared_norms()
    check_norms(squares, one_by_one(model, x, labels), 1e-12)
    gains = [square for key, square in squares.items() if key.endswith("skip_gain")]
    assert gains
    assert all((square > 0).all() for square in gains)


def test_the_temporaries_may_be_of_one_example():
    model = network("nf_resnet50")
    x, labels = examples(COUNT)
    expected = passes_of(model, x, labels).squared_norms()
    found = passes_of(model, x, labels, max_bytes=1).squared_norms()
    for name, square in found.items():
        assert torch.allclose(square, expected[name], rtol=1e-11, atol=0), name


def test_frozen_parameters_are_left_out():
    model = network("nfnet_f0")
    frozen = {"stem.conv0.weight", "stages.1.0.conv1.gain", "stages.2.0.skip_init.skip_gain", "head.fc.bias"}
    for name, p in model.named_parameters():
        p.requires_grad_(name not in frozen)
    x, labels = examples(COUNT)
    passes = passes_of(model, x, labels)
    squares = passes.squared_norms()
    assert squares.keys() == dict(model.named_parameters()).keys() - frozen
    check_norms(squares, one_by_one(model, x, labels), 1e-12)
    passes.accumulate(torch.ones(COUNT))
    assert all((p.grad is None) == (name in frozen) for name, p in model.named_parameters())


@pytest.mark.parametrize("add_eps", [False, True])
def test_rows_of_hardly_any_variance(add_eps):
    """Whose norm eps bounds, or changes."""
    conv = WSConv2d(3, 4, 3, eps=1e-2, add_eps=add_eps).double()
    with torch.no_grad():
        conv.weight[0] = 0.3
        conv.weight[1] *= 0.01
    model = nn.Sequential(conv, nn.Flatten(), nn.LazyLinear(10)).double()
    x, labels = examples(COUNT, size=5)
    model(x)
    check_norms(passes_of(model, x, labels).squared_norms(), one_by_one(model, x, labels), 1e-12)


class Composed(nn.Module):
    """Layers of torch, of one to three dimensions, with what they may be given."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv1d(3, 4, 3, padding="same", dilation=2)
        self.two = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2, bias=False)
        self.depthwise = nn.Conv2d(6, 12, 3, padding="same", groups=6)
        self.even = nn.Conv2d(12, 6, 2, padding="same")
        self.three = nn.Conv3d(2, 3, 2)
        self.norm = nn.LayerNorm((3, 2))
        self.sequence = nn.Linear(2, 5)
        self.shift = nn.Parameter(torch.randn(1, 5))
        self.factor = nn.Parameter(torch.tensor(1.5))
        self.head = nn.Linear(5, 10, bias=False)

    def forward(self, x):  # (N, 3, 4, 4)
        x = self.one(x.flatten(2)).unflatten(2, (4, 4))
        x = self.even(self.depthwise(self.two(x)).relu()) * self.factor
        x = self.three(x.unflatten(1, (2, 3))).relu()  # (N, 3, 2, 1, 2)
        x = self.sequence(self.norm(x.permute(0, 3, 2, 1, 4).squeeze(1)))  # (N, 2, 3, 5)
        return self.head((self.shift - x).mean((1, 2)) + self.shift)


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's, of an even kernel
def test_layers_of_torch_of_one_to_three_dimensions():
    model = Composed().double()
    x, labels = examples(COUNT, size=4)
    check_norms(passes_of(model, x, labels).squared_norms(), one_by_one(model, x, labels), 1e-12)


class Reused(nn.Module):
    """A weight in two layers, one that is computed from two others, and a shared bias."""

    def __init__(self):
        super().__init__()
        self.conv = WSConv2d(3, 3, 3)
        self.plain = nn.Conv2d(3, 3, 1)
        self.weight, self.length = nn.Parameter(torch.randn(10, 3)), nn.Parameter(torch.ones(10, 1))

    def forward(self, x):
        x = self.conv(self.conv(x).relu(), torch.tensor([0.5], dtype=x.dtype))
        x = self.plain(x) + self.plain(x.flip(-1)) + self.plain.bias[:, None, None] * self.weight[0, 0]
        return F.linear(x.mean((2, 3)), self.length * self.weight / self.weight.norm(dim=1, keepdim=True))


def test_weights_that_are_used_twice_and_weights_of_weights():
    model = Reused().double()
    x, labels = examples(COUNT, size=5)
    check_norms(passes_of(model, x, labels).squared_norms(), one_by_one(model, x, labels), 1e-12)


class Branched(nn.Module):
    """``alpha * skip_gain`` times a mask, before it meets the branch."""

    def __init__(self):
        super().__init__()
        self.conv, self.skip, self.head = nn.Conv2d(3, 3, 3), SkipInit(0.2, 1.0), nn.Linear(3, 10)

    def forward(self, x):
        mask = torch.tensor([1.0, 0.0, 1.0, 2.0], dtype=x.dtype)[: len(x)].view(-1, 1, 1, 1)
        return self.head((self.conv(x) * (self.skip.scale() * mask)).mean((2, 3)))


def test_a_scale_with_a_mask_for_each_example():
    model = Branched().double()
    x, labels = examples(4, size=5)
    passes = passes_of(model, x, labels)
    squares = passes.squared_norms()
    passes.accumulate(torch.ones(4))
    sums = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    F.cross_entropy(model(x), labels, reduction="sum").backward()
    assert (sums["skip.skip_gain"] - model.skip.skip_gain.grad).abs() < 1e-12
    assert squares["skip.skip_gain"][1] == 0  # its mask is 0
    assert (squares["skip.skip_gain"][[0, 2, 3]] > 0).all()


def test_dropout_and_stochastic_depth_draw_once_for_both_passes():
    model = network("nf_resnet50")
    for module in model.modules():
        if isinstance(module, StochasticDepth):
            module.rate = 0.5
    model.head.dropout.p = 0.5
    x, labels = examples(COUNT)
    torch.manual_seed(5)
    passes = passes_of(model, x, labels)
    factors = 1 / passes.norms()
    passes.accumulate(factors)
    torch.manual_seed(5)
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    losses = F.cross_entropy(model(x), labels, reduction="none")
    (losses * factors).sum().backward()
    assert all(torch.allclose(a, p.grad, rtol=1e-9, atol=1e-12) for a, p in zip(plain, model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["nfnet_f0", "nf_cifarnet", "fixup_resnet50"])
def test_bfloat16_rounds_and_nothing_else(name):
    model = network(name, torch.float32)
    x, labels = examples(COUNT, torch.float32)
    expected = passes_of(model, x, labels).norms()
    with torch.autocast("cpu", torch.bfloat16):
        passes = ExamplePasses(model, [x])
    passes.seed(lambda output: F.cross_entropy(output.float(), labels))
    found = passes.norms()
    assert ((found - expected).abs() < 0.05 * expected).all()  # 8 bits, through ten layers
    passes.accumulate(1 / found)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_a_network_with_batch_norm_is_refused_by_the_modules_name():
    with pytest.raises(UsageError, match=r"^stages\.0\.0\.bn0 \(BatchNorm2d\) mixes examples: "):
        ExamplePasses(normfree.create_model("bn_resnet50", num_classes=10), [torch.randn(2, 3, 32, 32)])
    running = nn.Sequential(nn.Conv2d(3, 3, 3), nn.InstanceNorm2d(3, track_running_stats=True))
    with pytest.raises(UsageError, match=r"^1 \(InstanceNorm2d\) mixes examples: "):
        ExamplePasses(running, [torch.randn(2, 3, 8, 8)])


class Unknown(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how, self.table, self.head = how, nn.Parameter(torch.randn(1, 3)), nn.Linear(3, 10)

    def forward(self, x):
        return self.how(self.head(x), self.table)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda out, table: torch.cat([out, table.expand(len(out), 3)], 1), "table meets examples in Cat"),
        (lambda out, table: torch.einsum("nk,tj->nk", out, table), "table meets examples in"),
        (lambda out, table: out[:1] * table[0, 0], r"table meets a tensor of shape \(1, 10\) that has no row"),
        (lambda out, table: out.sum(), r"the output \(\(\)\) must be a tensor with a row for each of 2 examples"),
        (lambda out, table: [out], r"the output \(list\) must be"),
    ],
)
def test_parameters_that_meet_examples_in_another_way_are_refused(how, message):
    with pytest.raises(UsageError, match=message):
        ExamplePasses(Unknown(how), [torch.randn(2, 3)])


def test_a_layer_that_sees_other_rows_is_refused():
    model = nn.Sequential(nn.Unflatten(0, (2, 1)), nn.Flatten(0, 1), nn.Linear(3, 10))
    ExamplePasses(model, [torch.randn(2, 3)])
    views = normfree.create_model("nf_cifarnet", num_classes=10, stem="3x3", views=6).eval()
    with pytest.raises(UsageError, match=r"a layer with .*stem.conv.weight sees 12 rows, where the batch has 2"):
        ExamplePasses(views, [torch.randn(2, 3, 32, 32)])


def test_what_comes_first():
    passes = ExamplePasses(nn.Linear(3, 2), [torch.randn(4, 3)])
    for call in (passes.norms, functools.partial(passes.accumulate, torch.ones(4))):
        with pytest.raises(UsageError, match=r"^seed\(\) comes first"):
            call()
    with pytest.raises(UsageError, match=r"^4 rows must be divisible by views \(=3\)"):
        ExamplePasses(nn.Linear(3, 2), [torch.randn(4, 3)], views=3)
    with pytest.raises(UsageError, match=r"^no parameter of the network requires a gradient"):
        ExamplePasses(nn.Linear(3, 2).requires_grad_(False), [torch.randn(4, 3)])
    with pytest.raises(UsageError, match=r"^a network \(torch.nn.Module\) is needed, not function"):
        ExamplePasses(lambda x: x, [torch.randn(4, 3)])
