"""U-Nets: the signal through levels and concatenations, in every dimension, and their controls."""

import math

import pytest
import torch
from torch import nn

import normfree
from normfree import UsageError
from normfree.models import NFUNet, build_unet, count_macs, list_models
from normfree.nn import BATCH_NORM
from normfree.optim import param_groups

NAMES = ["nf_unet", "nf_unet3d", "bn_unet", "bn_unet3d", "in_unet", "in_unet3d"]
SMALL = dict(widths=(8, 16, 16), depths=(1, 2, 1), num_classes=3, in_chans=1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def small(dims, **options):
    return NFUNet(**SMALL | dict(dims=dims) | options)


def outputs(model, x):
    """What each part in ``expected()`` leaves, by name."""
    got, handles = {}, []
    for name in model.expected():
        keep = lambda module, args, output, name=name: got.__setitem__(name, output)  # noqa: E731
        handles.append(model.get_submodule(name).register_forward_hook(keep))
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return got


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize(("dims", "side"), [(1, 1024), (2, 128), (3, 40)])
def test_theory_holds_through_levels_and_concatenations(dims, side, activation):
    """Within 10 % behind ReLU; in the middle of the maps, since zeros around them take of the variance."""
    widths, depths = {1: (96, 96, 96), 2: (32, 48, 64), 3: (24, 48)}[dims], (2, 2, 2)[: 2 + (dims < 3)]
    options = dict(widths=widths, depths=depths, in_chans=16, dims=dims, skip_gain=1.0, activation=activation)
    nets, variances = {1: 10, 2: 4, 3: 3}[dims], dict.fromkeys(NFUNet(**options).expected(), 0.0)
    for _ in range(nets):
        model = NFUNet(**options).eval()
        for name, out in outputs(model, torch.randn(1, 16, *(side,) * dims)).items():
            inner = out[(..., *(slice(n // 4, n - n // 4) for n in out.shape[2:]))]
            variances[name] += inner.transpose(0, 1).flatten(1).var(1).mean().item() / nets
    # channels differ in variance, and behind a smooth activation those with more of it weigh more
    tolerance = 0.1 if activation == "relu" else 0.15
    for name, expected in model.expected().items():
        assert variances[name] == pytest.approx(expected, rel=tolerance), name


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_concatenations_give_each_map_its_share(share):
    model = small(2, skip_gain=1.0, skip_share=share, widths=(48, 48, 48), in_chans=8).eval()
    for name, out in outputs(model, torch.randn(2, 8, 96, 96)).items():
        if name.endswith("concat"):
            inner = out[..., 8:-8, 8:-8] if out.shape[-1] > 50 else out[..., 4:-4, 4:-4]
            below, skip = (part.square().mean().item() for part in inner.chunk(2, 1))
            assert (below + skip) / 2 == pytest.approx(1.0, abs=0.12)
            assert skip / (below + skip) == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("dims", [2, 3])
def test_signal_propagation_finds_blocks_and_no_fault(dims):
    side = {2: 64, 3: 24}[dims]
    model = small(dims, skip_gain=1.0, widths=(16, 32, 32))
    spp = normfree.spp.record(model, (2, 1, *(side,) * dims))
    assert spp.blocks == [name for name, _ in model.named_blocks()]
    assert spp.diagnose() == []
    behind_concat = [row for row in spp.rows if row.block.startswith("ups")]
    assert all(row.transition and row.expected_var == pytest.approx(1.04) for row in behind_concat)


def test_a_wrong_gain_is_found():
    model = small(2, skip_gain=1.0, widths=(16, 32, 32))
    for module in model.modules():
        if isinstance(module, normfree.nn.WSConv2d):
            module.input_scale = 1.0
    assert normfree.spp.record(model, (2, 1, 64, 64)).diagnose()


@pytest.mark.parametrize("sizes", [(16, 16), (17, 23), (9, 8)])
def test_output_has_the_size_of_the_input(sizes):
    for model in (small(2), build_unet("bn_unet", num_classes=3, in_chans=1, widths=(8, 16, 16), depths=(1, 1, 1))):
        assert model(torch.randn(2, 1, *sizes)).shape == (2, 3, *sizes)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_folding_keeps_the_function(dims):
    model = small(dims, skip_gain=0.7, squeeze_excite=dims == 2).double().eval()
    x = torch.randn(1, 1, *(9,) * dims, dtype=torch.float64)
    folded = normfree.fold(model)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-9, atol=1e-9)
    assert not any(isinstance(m, normfree.nn.SameConv) for m in folded.modules())


def test_examples_do_not_mix_and_every_parameter_learns():
    model = small(3, skip_gain=1.0).double().train()
    x = torch.randn(2, 1, 8, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(model(x), torch.cat([model(x[:1]), model(x[1:])]), rtol=1e-9, atol=1e-11)
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_groups_know_the_classifier():
    groups = {group["name"]: group for group in param_groups(small(2), weight_decay=0.1, clipping=0.01)}
    assert groups["classifier"]["clipping"] is None
    assert groups["weight"]["clipping"] == 0.01
    assert not any(group.get("transposed") for group in groups.values())


def test_checkpointing_changes_no_gradient():
    model, x = small(2, skip_gain=1.0), torch.randn(1, 1, 16, 16)
    model(x).sum().backward()
    before = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.set_grad_checkpointing()
    model(x).sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], before)
    with pytest.raises(UsageError, match=r"stages \(=\[1\]\)"):
        model.set_grad_checkpointing(stages=[1])


def test_names():
    assert list_models(task="segmentation") == NAMES
    assert not set(NAMES) & set(list_models())
    with pytest.raises(UsageError, match="did you mean nf_unet"):
        normfree.create_model("nf_unte")
    with pytest.raises(UsageError, match=r"option 'width' is unknown for nf_unet; did you mean widths"):
        normfree.create_model("nf_unet", width=3)
    with pytest.raises(UsageError, match=r"task \(='depth'\)"):
        list_models(task="depth")


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_built_and_described(name):
    sizes = dict(widths=(8, 16, 16), depths=(1, 1, 1))
    model = normfree.create_model(name, num_classes=3, in_chans=1, **sizes)
    x = torch.randn(2, 1, *(16,) * model.dims)
    assert model(x).shape == (2, 3, *x.shape[2:])
    assert len(model.default_cfg["input_size"]) == model.dims + 1
    info = normfree.model_info(name, num_classes=3, in_chans=1, **sizes)
    assert info.params == sum(p.numel() for p in model.parameters())
    assert info.macs == count_macs(model, (1, *(info.test_size,) * model.dims))
    norms = [m for m in model.modules() if isinstance(m, (*BATCH_NORM, nn.InstanceNorm2d, nn.InstanceNorm3d))]
    assert bool(norms) == (not name.startswith("nf_"))
    model.reset_classifier(5)
    assert model(x).shape[1] == 5
    model.reset_classifier(0)
    assert model(x).shape[1] == 8


def test_another_dimension_of_a_name():
    model = normfree.create_model("nf_unet", num_classes=2, in_chans=2, dims=1, widths=(8, 16), depths=(1, 1))
    assert model(torch.randn(1, 2, 33)).shape == (1, 2, 33)


@pytest.mark.parametrize(
    ("options", "quoted"),
    [
        (dict(widths=(8,), depths=(1,)), "must be as many, at least 2"),
        (dict(widths=(8, 16), depths=(1, 1, 1)), "must be as many, at least 2"),
        (dict(dims=4), r"dims \(=4\)"),
        (dict(skip_share=1.0), r"skip_share \(=1.0\)"),
        (dict(drop_rate=1.0), r"drop_rate \(=1.0\)"),
        (dict(depths=(1, 0, 1)), r"depths \(=0\)"),
    ],
    ids=["one level", "lengths", "dims", "share", "rate", "depth"],
)
def test_what_cannot_be_is_refused(options, quoted):
    with pytest.raises(UsageError, match=quoted):
        NFUNet(**SMALL | options)


def test_skip_gain_0_starts_as_shortcuts():
    """Blocks of the first level pass the stem on, so that its skip is the stem's map."""
    model = small(2).eval()
    x = torch.randn(1, 1, 16, 16)
    assert torch.equal(model.stages[0](model.stem(x)), model.stem(x))
    assert math.isclose(model.ups[-1].concat.scales[1], 1.04**-0.5)
