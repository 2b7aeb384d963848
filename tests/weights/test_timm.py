"""timm's networks are ours with timm's function: outputs, and weights there and back bit for bit."""

import pytest
import timm
import torch
from golden_data import images, load, parameters, relative
from precision import assert_no_farther, assert_same_function, in_float64

import normfree
from normfree import UsageError
from normfree.weights import load_haiku, load_timm, timm_names, to_timm

# every kind of block, stem, attention and padding that timm has; the deeper ones repeat them
NAMES = [
    *(
        "dm_nfnet_f0",
        "nfnet_f0",
        "nfnet_l0",
        "eca_nfnet_l0",
        "test_nfnet",
        "nf_regnet_b0",
        "nf_regnet_b1",
        "nf_resnet26",
    ),
    *("nf_resnet50", "nf_seresnet26", "nf_ecaresnet26"),
]


@torch.no_grad()
def shaken(name: str) -> torch.nn.Module:
    """timm's network with random gains, biases, skip gains and classifier, in evaluation mode."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).eval()
    for key, parameter in model.named_parameters():
        z = torch.randn_like(parameter)
        if key.endswith("skipinit_gain"):
            parameter.copy_(0.5 + 0.1 * z)
        elif key.endswith("gain"):
            parameter.copy_(1 + 0.1 * z)
        elif key.endswith("bias"):
            parameter.copy_(0.1 * z)
        elif key == "head.fc.weight":
            parameter.copy_(z * parameter.shape[1] ** -0.5)
    return model


@pytest.fixture(scope="module", params=NAMES)
def pair(request):
    theirs = shaken(request.param)
    ours = normfree.create_model(f"timm_{request.param}", num_classes=10).eval()
    return load_timm(ours, theirs.state_dict()), theirs


@pytest.fixture(scope="module")
def exact(pair):
    """timm's network in float64."""
    return in_float64(pair[1])


@pytest.mark.parametrize("size", [(64, 64), (75, 66)])
def test_same_outputs(pair, exact, size):
    ours, theirs = pair
    x = torch.randn(4, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        # gamma and alpha are multiplied elsewhere, so sums are rounded differently
        assert_same_function(ours, theirs, exact, x)
        assert_same_function(ours.forward_features, theirs.forward_features, exact.forward_features, x)


def test_weights_come_back_bit_for_bit(pair):
    ours, theirs = pair
    back, given = to_timm(ours), theirs.state_dict()
    assert back.keys() == given.keys()
    for name, tensor in given.items():
        assert back[name].shape == tensor.shape
        assert torch.equal(back[name], tensor)
    theirs.load_state_dict(back)


def test_fresh_networks_start_as_timms_do(pair):
    ours, theirs = pair
    name = ours.default_cfg["architecture"]
    fresh = normfree.create_model(name, num_classes=10)
    assert sum(p.numel() for p in fresh.parameters()) == sum(p.numel() for p in theirs.parameters())
    block = fresh.stages[0][0]
    if "dm_" in name:
        assert block.skip_init.skip_gain.item() == 0.0
    else:
        assert not list(block.skip_init.parameters())
        assert not block.conv2.gain.any()


LISTED = [name.removeprefix("timm_") for name in normfree.list_models("timm_*")]


def test_every_variant_of_timm_is_there():
    theirs = {name for name in timm.list_models(["*nfnet*", "nf_*"]) if not name.startswith("normfree_")}
    assert set(LISTED) == theirs


@pytest.mark.sample(0.2)
@pytest.mark.parametrize("name", LISTED)
def test_every_variant_has_timms_parameters(name):
    with torch.device("meta"):
        ours, model = normfree.create_model(f"timm_{name}"), timm.create_model(name)
    shapes = {key: tuple(value.shape) for key, value in to_timm(ours).items()}
    assert shapes == {key: tuple(value.shape) for key, value in model.state_dict().items()}


def test_released_weights_through_timms_names():
    """dm_nfnet's weights are the released ones: our released function takes them, and gives the released outputs."""
    golden = load("nfnet_f0_64")
    model = load_haiku(normfree.create_model("nfnet_f0", num_classes=10).eval(), parameters(golden))
    again = load_timm(normfree.create_model("nfnet_f0", num_classes=10).eval(), to_timm(model))
    theirs = timm.create_model("dm_nfnet_f0", num_classes=10).eval()
    theirs.load_state_dict(to_timm(model))
    variant = load_timm(normfree.create_model("timm_dm_nfnet_f0", num_classes=10).eval(), to_timm(model))
    x = images("nfnet_f0_64", golden["logits"].shape[0])
    with torch.no_grad():
        assert_no_farther(again(x), golden["logits"], in_float64(model)(x.double()))
        assert_same_function(variant, theirs, in_float64(theirs), torch.cat([x, x.flip(-1)]))
        assert relative(theirs(x), golden["logits"]) > 1e-2  # epsilon added to the variance, erf for tanh


def test_what_does_not_fit_is_named():
    model = normfree.create_model("timm_test_nfnet", num_classes=10)
    state = to_timm(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    short = {name: tensor for name, tensor in state.items() if name != "stem.conv1.gain"}
    with pytest.raises(UsageError, match=r"1 missing \(stem.conv1.gain\)"):
        load_timm(model, short)
    with pytest.raises(UsageError, match=r"1 extra \(head.norm.weight\)"):
        load_timm(model, state | {"head.norm.weight": torch.zeros(1)})
    with pytest.raises(UsageError, match=r"head.fc.weight has shape \(3, 192\), .* needs \(10, 192\)"):
        load_timm(model, state | {"head.fc.weight": torch.zeros(3, 192)})
    with pytest.raises(UsageError, match="nf_resnet"):
        timm_names(normfree.create_model("nf_resnet26_small"))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_files(tmp_path):
    from safetensors.torch import save_file

    model = normfree.create_model("timm_test_nfnet", num_classes=10)
    save_file(to_timm(model), tmp_path / "model.safetensors")
    other = load_timm(normfree.create_model("timm_test_nfnet", num_classes=10), tmp_path / "model.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:1000])
    for name in ("cut.safetensors", "absent.safetensors"):
        with pytest.raises(UsageError, match=name):
            load_timm(other, tmp_path / name)
