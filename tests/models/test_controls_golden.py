"""The controls are the authors' functions: against their code's numbers, and V1 against torchvision's ResNet."""

import golden_data as gd
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from precision import assert_no_farther, in_float64
from small_models import batch_norms, blocks, shake

import normfree
from normfree.models import FixupBlock
from normfree.weights import haiku_names, load_haiku


def channel_statistics(x):
    """Average squared mean and average variance over channels, in float64."""
    x = x.detach().double().transpose(0, 1).flatten(1)
    return x.mean(1).square().mean().item(), x.var(1, correction=0).mean().item()


def measure(model):
    """Statistics of the stem, the blocks and the branches' ends, filled in by the next forward pass."""
    signal, branch = [], []
    for module in (model.stem, *blocks(model)):
        module.register_forward_hook(lambda m, a, out: signal.append(channel_statistics(out)))
    for block in blocks(model):
        end = block.bias3b if isinstance(block, FixupBlock) else block.conv2
        end.register_forward_hook(lambda m, a, out: branch.append(channel_statistics(out)[1]))
    return signal, branch


@pytest.fixture(scope="module", params=gd.CONTROLS)
def case(request):
    """One forward and backward pass of a golden model; BatchNorm uses the batch's statistics."""
    golden = gd.load(request.param)
    model = normfree.create_model(gd.CONTROLS[request.param], num_classes=10)
    load_haiku(model.train(bool(batch_norms(model))), gd.parameters(golden))
    batch = golden["logits"].shape[0]
    reference = in_float64(model)
    ratios = mean_ratios(reference)
    exact = outputs(reference, gd.images(request.param, batch).double()) | dict(ratios=ratios)
    signal, branch = measure(model)
    pool = model.forward_head(features := model.forward_features(gd.images(request.param, batch)), pre_logits=True)
    logits = model.forward_head(features)
    loss = F.cross_entropy(logits, torch.arange(batch) % 10)
    loss.backward()
    got = dict(logits=logits, pool=pool, loss=loss)
    return dict(golden=golden, model=model, got=got, exact=exact, signal=signal, branch=branch)


def mean_ratios(model):
    """Of each BatchNorm's input, filled in by the next forward pass: root mean square of mean over deviation."""
    found = []

    def note(module, args):
        x = args[0].transpose(0, 1).flatten(1)
        found.append((x.mean(1).square() / x.var(1, correction=0)).mean().item())

    for module in batch_norms(model):
        module.register_forward_pre_hook(note)
    return found


@torch.no_grad()
def outputs(model, x):
    pool = model.forward_head(features := model.forward_features(x), pre_logits=True)
    return dict(pool=pool, logits=model.forward_head(features))


@pytest.mark.parametrize("what", ["logits", "pool"])
def test_outputs(case, what):
    """torch's batch_norm is ``x * scale + (bias - mean * scale)``: two products and two sums of the size of the mean.

    The golden's subtracts the mean first. These four roundings of each layer are independent, are the same at all
    places (so that pooling does not average them away), and are passed on with unit variance.
    """
    extra = 2**-24 * (4 * sum(case["exact"]["ratios"])) ** 0.5
    assert_no_farther(case["got"][what], case["golden"][what], case["exact"][what], extra=extra)


def test_loss(case):
    """As far from the golden's as the two logits are apart: a mean of cross-entropies is that steep at most."""
    got, golden = case["got"], case["golden"]
    apart = np.linalg.norm(got["logits"].detach().numpy() - golden["logits"]) * (2 / len(golden["logits"])) ** 0.5
    assert abs(got["loss"].item() - golden["loss"].item()) <= apart + 4 * 2**-24 * golden["loss"].item()


def test_signal_statistics(case):
    golden = case["golden"]
    sq_mean, var = np.array(case["signal"]).T
    np.testing.assert_allclose(sq_mean, golden["avg_sq_mean"], rtol=1e-5)
    np.testing.assert_allclose(var, golden["avg_var"], rtol=1e-5)
    # FixUp's branches end around bias3b, 0.1, with standard deviations down to 7e-4: rounding 0.1 to float32 (7e-9)
    # moves that variance by 1e-11
    np.testing.assert_allclose(case["branch"], golden["res_avg_var"], rtol=1e-5, atol=1e-11)


def test_gradient_norms(case):
    golden, parameters = case["golden"], dict(case["model"].named_parameters())
    names = haiku_names(case["model"])
    norms = {"/".join(key): parameters[ours].grad.double().norm().item() for ours, key in names.items()}
    got, expected = np.array([norms[str(name)] for name in golden["param_names"]]), golden["grad_norms"]
    if not batch_norms(case["model"]):
        # FixUp's scalar biases are sums over a map: the terms of res_block_2/bias2a add up to 1 in absolute value and
        # to 5.6e-6 with their signs, so half a float32 unit in the last place of 1 is allowed; 6e-9 was seen
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=3e-8)
        return
    # Of the millions of inputs of this network's ReLUs, rounding moves a few over 0 (three, between our float32 and
    # float64), and with each the gradients in front of it: those of the first six blocks are off by up to 4e-4 in
    # float32 and 5e-3 in float64, while the median error is 2e-6.
    error = np.abs(got - expected) / expected
    assert np.median(error) < 1e-5
    assert error.max() < 1e-2
    last = np.array(["final_bn" in name or "linear" in name for name in golden["param_names"]])
    assert last.sum() == 4
    assert error[last].max() < 1e-5


def test_parameter_count(case):
    assert sum(p.numel() for p in case["model"].parameters()) == case["golden"]["num_params"]


V1_NAMES = dict(conv_shortcut="downsample.0", shortcut_bn="downsample.1") | {
    f"{kind}{i}": f"{kind}{i + 1}" for kind in ("conv", "bn") for i in range(3)
}


def as_torchvision(name):
    """torchvision's name of a parameter or buffer of ours."""
    stage, _, rest = name.removeprefix("stages.").partition(".")
    if name.startswith("stem"):
        return name.replace("stem.conv", "conv1").replace("stem.bn", "bn1")
    if name.startswith("head"):
        return name.removeprefix("head.")
    block, child, last = rest.split(".")
    return f"layer{int(stage) + 1}.{block}.{V1_NAMES[child]}.{last}"


@pytest.mark.parametrize("training", [True, False])
def test_v1_is_torchvisions_resnet(training):
    """At 65 px every strided map is odd, where TensorFlow's padding is torchvision's: 33, 17, 9, 5, 3."""
    ours = shake(normfree.create_model("bn_resnet50_v1", num_classes=10, depths=(2, 1, 2, 1)))
    peer = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [2, 1, 2, 1], num_classes=10)
    state = {as_torchvision(name): value.clone() for name, value in ours.state_dict().items()}
    peer.load_state_dict(state)
    x = torch.randn(3, 3, 65, 65, dtype=torch.float64)
    got, expected = ours.double().train(training)(x), peer.double().train(training)(x)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)  # float64 rounding
    for name, value in ours.state_dict().items():  # running statistics move alike
        torch.testing.assert_close(value, peer.state_dict()[as_torchvision(name)], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layers", [50, 101, 152])
def test_sizes_are_torchvisions(layers):
    with torch.device("meta"):
        peer = getattr(torchvision.models, f"resnet{layers}")()
    params, macs = sum(p.numel() for p in peer.parameters()), normfree.models.count_macs(peer, (3, 224, 224))
    info = {kind: normfree.model_info(kind.format(layers)) for kind in ("bn_resnet{}", "bn_resnet{}_v1")}
    assert {i.macs for i in info.values()} == {macs}
    assert info["bn_resnet{}_v1"].params == params
    for kind in ("fixup", "skipinit", "plain", "nf"):
        assert normfree.model_info(f"{kind}_resnet{layers}").macs == macs


@pytest.mark.parametrize("k", [0, 3])
def test_nfnet_with_batch_norm_costs_what_the_nfnet_does(k):
    assert normfree.model_info(f"bn_nfnet_f{k}").macs == normfree.model_info(f"nfnet_f{k}").macs
