"""Weights of a network that classifies, in each form, into the backbone of one for pixels: what it computes stays."""

import pickle

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_models import shake, small

import normfree
from normfree import UsageError
from normfree.models import depth_estimator, segmenter
from normfree.runs.initialize import initialize
from normfree.training.weights_file import save_weights
from normfree.weights import pretrained, to_haiku, to_timm

MAKERS = {"segmentation": lambda net: segmenter(net, 5, width=8), "depth": lambda net: depth_estimator(net, width=8)}
STRIDES = (32, 16, 8)


def authors_file(model, path):
    path.write_bytes(pickle.dumps({m: {n: np.asarray(a) for n, a in p.items()} for m, p in to_haiku(model).items()}))
    return str(path)


def our_file(model, path):
    path = path.with_suffix(".safetensors")
    save_weights(path, model.state_dict(), dict(classes=["a"] * 10))
    return str(path)


FORMS = {"npz": authors_file, "safetensors": our_file}


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("task", MAKERS)
@pytest.mark.parametrize("name", ["nf_resnet50", "nf_regnet_b0", "nfnet_f0"])
def test_the_features_are_those_of_the_classifier(name, task, form, tmp_path):
    torch.manual_seed(0)
    plain, x = small(name), torch.randn(1, 3, 64, 64)
    path, expected = FORMS[form](plain, tmp_path / "w.npz"), plain.forward_features(x)
    for stride in STRIDES:
        model = MAKERS[task](small(name, output_stride=stride, num_classes=0)).eval()
        head = {key: value.clone() for key, value in model.head.state_dict().items()}
        said = initialize(model, path)
        assert said == f"weights from {path}, without their classifier, into the backbone; what stands behind it is new"
        assert all(torch.equal(value, head[key]) for key, value in model.head.state_dict().items())
        found, times = model.backbone.forward_features(x), 32 // stride
        assert found.shape[-1] == 2 * times
        same = small(name, output_stride=stride)
        same.load_state_dict(plain.state_dict())
        assert torch.equal(found, same.forward_features(x))
        if name == "nf_resnet50":  # without gates, which see the whole map, and pooled shortcuts
            found = found[..., ::times, ::times]
            # the same sums, which a dilated convolution takes in another order
            assert ((found - expected).norm() / expected.norm()).item() < 5e-6
        assert model(x).shape == (1, 5 if task == "segmentation" else 1, 64, 64)


@torch.no_grad()
@pytest.mark.parametrize("name", ["nf_seresnet50", "nfnet_f0"])
def test_gates_are_no_classifier(name, tmp_path):
    """Their linear layers are named as it is, further down."""
    plain, x = small(name), torch.randn(1, 3, 64, 64)
    path, model = authors_file(plain, tmp_path / "w.npz"), small(name, num_classes=3)
    assert initialize(model, path) == f"weights from {path}, with a new classifier (3 classes instead of 10)"
    assert torch.equal(model.forward_features(x), plain.forward_features(x))


@torch.no_grad()
@pytest.mark.parametrize("task", MAKERS)
def test_published_weights(task, tmp_path, monkeypatch):
    """Of a hub that the test plays."""
    torch.manual_seed(0)
    plain, x = shake(normfree.create_model("timm_test_nfnet").eval()), torch.randn(1, 3, 64, 64)
    save_file(to_timm(plain), tmp_path / "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, file, **options: str(tmp_path / file))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: None)
    monkeypatch.setattr(pretrained, "_reach", lambda endpoint: None)
    for stride in STRIDES[:2]:
        model = MAKERS[task](normfree.create_model("timm_test_nfnet", num_classes=0, output_stride=stride)).eval()
        said = initialize(model, "pretrained:timm_test_nfnet")
        assert said == (
            "published weights of timm_test_nfnet, without their classifier, into the backbone; "
            "what stands behind it is new"
        )
        same = normfree.create_model("timm_test_nfnet", output_stride=stride).eval()
        same.load_state_dict(plain.state_dict())
        assert torch.equal(model.backbone.forward_features(x), same.forward_features(x))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("other.npz", "other.npz has weights of another architecture than nf_resnet50: .* missing"),
        ("other.safetensors", "other.safetensors"),
        ("nowhere.npz", "nowhere.npz"),
        ("nowhere.safetensors", "nowhere.safetensors"),
        ("pretrained:nf_resnet50", "no weights of nf_resnet50 are published"),
        ("pretrained:timm_test_nfnet", "NFResNet .* has no counterpart in timm"),
    ],
)
def test_weights_of_something_else(path, said, tmp_path, monkeypatch):
    torch.manual_seed(0)
    other = small("nf_regnet_b0")
    authors_file(other, tmp_path / "other.npz")
    our_file(other, tmp_path / "other.npz")
    save_file(to_timm(normfree.create_model("timm_test_nfnet")), tmp_path / "model.safetensors")
    monkeypatch.setattr(pretrained, "_fetched", lambda published: tmp_path / "model.safetensors")
    model = segmenter(small("nf_resnet50", num_classes=0), 5, width=8)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UsageError, match=said) as caught:
        initialize(model, path if ":" in path else str(tmp_path / path))
    assert len(str(caught.value).strip().splitlines()) == 1
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
