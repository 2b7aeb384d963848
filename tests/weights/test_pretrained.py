"""Published weights: which there are, fetching them (from a hub that the test plays), adapting them."""

import re

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from small_models import shake

import normfree
from normfree import UsageError
from normfree.models.published import PUBLISHED
from normfree.weights import pretrained, to_timm

NAME = "timm_test_nfnet"


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The model whose weights the hub has."""
    torch.manual_seed(0)
    model = shake(normfree.create_model(NAME).eval())
    save_file(to_timm(model), tmp_path / "model.safetensors")
    asked = []

    def download(repo, file, **options):
        asked.append((repo, file))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(pretrained, "_reach", lambda endpoint: None)
    yield model
    assert set(asked) <= {("timm/test_nfnet.r160_in1k", "model.safetensors")}


def same(model, other, *, but=()):
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in model.state_dict().items() if key not in but)


def test_the_weights_are_fetched_and_converted(published):
    assert same(published, normfree.create_model(NAME, pretrained=True))


def test_another_classifier(published):
    head = ("head.fc.weight", "head.fc.bias")
    for classes in (7, 0):
        model = normfree.create_model(NAME, pretrained=True, num_classes=classes)
        assert model.num_classes == classes
        assert same(model, published, but=head)
    bare = normfree.create_model(NAME, pretrained=True, num_classes=0, global_pool="")
    assert bare(torch.randn(1, 3, 64, 64)).shape == (1, 192, 2, 2)


def test_other_channels(published):
    grey = normfree.create_model(NAME, pretrained=True, in_chans=1)
    first = published.stem.conv0.weight
    assert torch.allclose(grey.stem.conv0.weight, first.sum(1, keepdim=True))
    assert same(grey, published, but=("stem.conv0.weight",))
    four = normfree.create_model(NAME, pretrained=True, in_chans=4)
    assert torch.allclose(four.stem.conv0.weight[:, 3], first[:, 0] * 3 / 4)


def test_a_file_instead(published, tmp_path):
    assert same(published, normfree.create_model(NAME, pretrained=tmp_path / "model.safetensors"))


def test_without_a_network(monkeypatch, tmp_path):
    def refuse(*args, **options):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(pretrained, "_reach", refuse)
    where = re.escape("huggingface.co/timm/dm_nfnet_f0.dm_in1k/resolve/main/model.safetensors")
    with pytest.raises(UsageError, match=rf"\(no route to host\); download https://{where} where .*normfree convert"):
        normfree.create_model("nfnet_f0", pretrained=True, depths=(1, 1, 1, 1))
    with pytest.raises(UsageError, match=r"cannot read|does not exist|No such file"):
        normfree.create_model(NAME, pretrained=tmp_path / "nothing.safetensors")


def test_no_weights_of_that_name():
    with pytest.raises(UsageError, match="no weights of nf_resnet50 are published; there are some of nfnet_f0"):
        normfree.create_model("nf_resnet50", pretrained=True)


def test_the_list_is_timms():
    """What timm publishes of its Normalizer-Free networks, each under our name of its function."""
    theirs = {n for n in timm.list_pretrained() if timm.get_pretrained_cfg(n).hf_hub_id and "nf" in n.split(".")[0]}
    names = {name.removeprefix("timm_"): item.hub for name, item in PUBLISHED.items() if name.startswith("timm_")}
    known = {f"timm_{n.partition('.')[0]}" for n in theirs} & set(normfree.list_models())
    assert {f"timm_{name}" for name in names} == known
    for hub in names.values():
        assert hub.removeprefix("timm/") in theirs
    for name in set(PUBLISHED) - {f"timm_{name}" for name in names}:
        assert PUBLISHED[name] == PUBLISHED[f"timm_dm_{name}"]


def test_files_of_ours(tmp_path, published):
    state = {name: tensor.contiguous() for name, tensor in published.state_dict().items()}
    save_file(state, tmp_path / "ours.safetensors")
    assert same(published, normfree.create_model(NAME, pretrained=tmp_path / "ours.safetensors"))
    five = shake(normfree.create_model(NAME, num_classes=5))
    save_file(dict(five.state_dict()), tmp_path / "five.safetensors")
    model = normfree.create_model(NAME, pretrained=tmp_path / "five.safetensors", num_classes=3)
    assert same(model, five, but=("head.fc.weight", "head.fc.bias"))
    with pytest.raises(UsageError, match=r"five.safetensors does not fit: .*stages.0.0"):
        normfree.create_model(NAME, pretrained=tmp_path / "five.safetensors", widths=(16, 64, 96, 128))
