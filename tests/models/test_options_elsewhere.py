"""Options of the three families in the rest of the library: folding, maps, dilation, the authors' and timm's names."""

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from option_cases import CASES, case_name, network
from precision import assert_same_function, in_float64

import normfree
from normfree import UsageError
from normfree.export import Preprocessing, prepack, to_onnx, weight_arithmetic
from normfree.nn import SameConv2d
from normfree.private import ExamplePasses
from normfree.weights import load_haiku, to_haiku, to_timm

EACH = pytest.mark.parametrize(("name", "options"), CASES, ids=case_name)


@torch.no_grad()
@EACH
def test_folded_and_prepacked_networks_are_the_same_function(name, options):
    torch.manual_seed(0)
    model, x = network(name, options), torch.randn(4, 3, 64, 64)
    exact = in_float64(model)
    folded = normfree.fold(model)
    assert not any(isinstance(module, SameConv2d) for module in folded.modules())
    assert_same_function(folded, model, exact, x)
    assert_same_function(prepack(model, (4, 3, 64, 64)), model, exact, x)


@torch.no_grad()
@EACH
def test_maps_are_what_feature_info_says(name, options):
    model, x = network(name, options), torch.randn(1, 3, 64, 64)
    last, maps = model.forward_intermediates(x)
    described = [(1, info["num_chs"], 64 // info["reduction"], 64 // info["reduction"]) for info in model.feature_info]
    assert [tuple(level.shape) for level in maps] == described
    assert torch.equal(last, model.forward_features(x))
    model.prune_intermediate_layers([2])
    assert torch.equal(model.forward_features(x), maps[2])


@torch.no_grad()
@EACH
def test_a_dilated_network_holds_the_strided_one(name, options):
    """At every fourth place, but for Squeeze-Excite's averages over all places."""
    torch.manual_seed(0)
    strided, x = network(name, options), torch.randn(1, 3, 64, 64)
    dilated = network(name, options | dict(output_stride=8))
    dilated.load_state_dict(strided.state_dict())
    assert dilated.feature_info[-1]["reduction"] == 8
    maps = [model.forward_features(x) for model in (strided, dilated)]
    assert maps[1].shape[-2:] == (8, 8)
    if strided.stages[0][0].squeeze_excite is None:
        torch.testing.assert_close(maps[1][..., ::4, ::4], maps[0], rtol=1e-4, atol=1e-5)  # float32 rounding


@EACH
def test_the_authors_names(name, options):
    model = network(name, options)
    if options.get("affine") == "activation" or options.get("final") == "linear":
        with pytest.raises(UsageError, match=rf"{name} has no Haiku counterpart of .*(affine|head\.expansion)"):
            to_haiku(model)
        return
    again = load_haiku(network(name, options), to_haiku(model))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("options", [dict(affine="activation"), dict(se_position="straddled")], ids=case_name)
def test_timm_lacks_some(options):
    with pytest.raises(UsageError, match=r"timm has no counterpart of (stem\.affine0|stages\.0\.0\.squeeze_excite)"):
        to_timm(network("nfnet_f0", options))
    assert "final_conv.weight" in to_timm(network("nfnet_f0", dict(spatial_convs=1, affine="bias")))


@pytest.mark.parametrize(
    ("name", "options"),
    [case for case in CASES if {"straddled", "activation", "dct", "linear", "logits"} & {*map(str, case[1].values())}],
    ids=case_name,
)
def test_onnx(name, options, tmp_path):
    torch.manual_seed(0)
    model, images = network(name, options), torch.randn(2, 3, 64, 64)
    written = to_onnx(model, tmp_path / "model.onnx", preprocessing=Preprocessing.of(model, 64))
    assert weight_arithmetic(written.path) == []
    session = onnxruntime.InferenceSession(str(written.path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = model(images).numpy()
    found = session.run(["logits"], {"image": images.numpy()})[0]
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()  # as of the networks without options


@pytest.mark.parametrize(
    ("name", "options"),
    [case for case in CASES if {"straddled", "activation", "dct", "linear", "logits"} & {*map(str, case[1].values())}],
    ids=case_name,
)
def test_gradients_of_single_examples(name, options):
    """Without holding them: every way in which a parameter meets an example is known."""
    torch.manual_seed(0)
    model, labels = network(name, options).double(), torch.arange(3)
    x = torch.randn(3, 3, 33, 33, dtype=torch.float64)
    passes = ExamplePasses(model, [x])
    passes.seed(lambda output: F.cross_entropy(output, labels))
    for example, norm in enumerate(passes.norms()):
        loss = F.cross_entropy(model(x[example : example + 1]), labels[example : example + 1])
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
        assert norm.item() == pytest.approx(gradient.norm().item(), rel=1e-7)  # squares of raw weights' are float32


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nf_seresnet50", dict(affine="activation", stochdepth_scaling="skip", stochdepth_rate=0.5)),
        ("nfnet_f0", dict(se_position="straddled", stem="dct", final="linear")),
        ("nf_regnet_b0", dict(affine="activation", skip_gain=None, global_pool="logits")),
    ],
    ids=case_name,
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch 2.11's own
def test_a_graph_without_breaks(name, options):
    torch.compiler.reset()
    torch.manual_seed(0)
    model, x = network(name, options).double(), torch.randn(2, 3, 33, 33, dtype=torch.float64)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-11, atol=1e-13)  # float64 sums in another order
    model.train()
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-11, atol=1e-13)
    torch.compiler.reset()
