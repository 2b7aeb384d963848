"""Published weights: which there are, fetching them (from a hub that the test plays), adapting them."""

import argparse
import pickle
import re
from contextlib import nullcontext

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from small_models import CONTROLS, SMALL, shake

import normfree
from normfree import UsageError
from normfree.models.published import PUBLISHED
from normfree.weights import pretrained, to_haiku, to_timm

NAME = "timm_test_nfnet"
RESNET = SMALL["nf_resnet50"]


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
        with (
            pytest.warns(UserWarning, match="new classifier .7 classes instead of 1000.") if classes else nullcontext()
        ):
            model = normfree.create_model(NAME, pretrained=True, num_classes=classes)
        assert model.num_classes == classes
        assert same(model, published, but=head)
    bare = normfree.create_model(NAME, pretrained=True, num_classes=0, global_pool="")
    assert bare(torch.randn(1, 3, 64, 64)).shape == (1, 192, 2, 2)


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_other_channels(published, channels):
    """Images whose channels are equal give the same logits: standardization and gains included."""
    with pytest.warns(UserWarning, match=f"first convolution adapted to {channels} channels? instead of 3$"):
        model = normfree.create_model(NAME, pretrained=True, in_chans=channels).eval()
    assert same(model, published, but=("stem.conv0.weight", "stem.conv0.gain"))
    x = torch.randn(2, 1, 64, 64)
    logits, expected = (net(x.expand(-1, net.in_chans, -1, -1)) for net in (model, published))
    assert ((logits - expected).abs().max() / expected.abs().max()).item() < 1e-5  # float32
    assert model.stem.conv0.weight.abs().sum((0, 2, 3)).min() > 0  # each channel is seen


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


def test_the_file_says_how_many_classes_and_channels(tmp_path, recwarn):
    """Left out, they are the file's; nothing is new, so nothing is said."""
    torch.manual_seed(0)
    model = shake(normfree.create_model(NAME, num_classes=10, in_chans=1))
    states = {"timms.safetensors": to_timm(model), "ours.safetensors": dict(model.state_dict())}
    for file, state in states.items():
        save_file(state, tmp_path / file)
    torch.save(dict(state_dict=model.state_dict(), args=argparse.Namespace()), tmp_path / "a.pth.tar")
    for file in (*states, "a.pth.tar"):
        loaded = normfree.create_model(NAME, pretrained=tmp_path / file)
        assert (loaded.num_classes, loaded.in_chans, loaded.default_cfg["num_classes"]) == (10, 1, 10)
        assert same(loaded, model)
    small = shake(normfree.create_model("nf_resnet50", num_classes=4, **RESNET))
    (tmp_path / "authors.npz").write_bytes(pickle.dumps(to_haiku(small)))
    loaded = normfree.create_model("nf_resnet50", pretrained=tmp_path / "authors.npz", **RESNET)
    assert loaded.num_classes == 4
    assert same(loaded, small)
    bare = normfree.create_model(NAME, num_classes=0)
    save_file(dict(bare.state_dict()), tmp_path / "bare.safetensors")
    assert normfree.create_model(NAME, pretrained=tmp_path / "bare.safetensors").num_classes == 0
    assert normfree.create_model(NAME).num_classes == 1000
    assert not recwarn.list


def test_a_new_classifier_is_said(tmp_path):
    bare = normfree.create_model(NAME, num_classes=0)
    save_file(dict(bare.state_dict()), tmp_path / "bare.safetensors")
    with pytest.warns(UserWarning, match="with a new classifier .5 classes; the weights have none.$"):
        normfree.create_model(NAME, pretrained=tmp_path / "bare.safetensors", num_classes=5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["nf_resnet50", "bn_resnet50", "fixup_resnet50", "nf_regnet_b0"])
@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3), (3, 4), (4, 2)])
def test_other_channels_of_every_stem(name, before, after, tmp_path):
    """Standardized or not, with batch statistics or without: equal channels give the same output."""
    torch.manual_seed(0)
    options = dict(SMALL | CONTROLS)[name]
    model = shake(normfree.create_model(name, num_classes=4, in_chans=before, **options)).eval()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "a.safetensors")
    with pytest.warns(UserWarning, match=f"adapted to {after} channels? instead of {before}$"):
        other = normfree.create_model(name, pretrained=tmp_path / "a.safetensors", in_chans=after, **options).eval()
    x = torch.randn(2, 1, 48, 48)
    logits, expected = (net(x.expand(-1, net.in_chans, -1, -1)) for net in (other, model))
    assert ((logits - expected).abs().max() / expected.abs().max()).item() < 1e-5


@torch.no_grad()
def test_another_stem_is_new_and_said(tmp_path):
    torch.manual_seed(0)
    options = dict(widths=(16, 32), depths=(1, 1), num_classes=4)
    model = shake(normfree.create_model("nf_resnet26_small", **options))
    save_file(dict(model.state_dict()), tmp_path / "a.safetensors")
    with pytest.warns(UserWarning, match=r"a.safetensors, with a new stem \(7x7 instead of 3x3\)$"):
        other = normfree.create_model("nf_resnet26_small", pretrained=tmp_path / "a.safetensors", stem="7x7", **options)
    assert same(other, model, but=("stem.conv.weight", "stem.conv.gain", "stem.conv.bias"))
    damaged = {name: value for name, value in model.state_dict().items() if name != "stem.conv.bias"}
    save_file(damaged, tmp_path / "b.safetensors")
    with pytest.raises(UsageError, match=r"another architecture than nf_resnet26_small: 1 missing \(stem.conv.bias\)"):
        normfree.create_model("nf_resnet26_small", pretrained=tmp_path / "b.safetensors", **options)


def test_files_of_ours(tmp_path, published):
    state = {name: tensor.contiguous() for name, tensor in published.state_dict().items()}
    save_file(state, tmp_path / "ours.safetensors")
    assert same(published, normfree.create_model(NAME, pretrained=tmp_path / "ours.safetensors"))
    five = shake(normfree.create_model(NAME, num_classes=5))
    save_file(dict(five.state_dict()), tmp_path / "five.safetensors")
    with pytest.warns(UserWarning, match=r"five.safetensors, with a new classifier \(3 classes instead of 5\)"):
        model = normfree.create_model(NAME, pretrained=tmp_path / "five.safetensors", num_classes=3)
    assert same(model, five, but=("head.fc.weight", "head.fc.bias"))
    with pytest.raises(UsageError, match=r"five.safetensors has weights of another .*stages.0.0"):
        normfree.create_model(NAME, pretrained=tmp_path / "five.safetensors", widths=(16, 64, 96, 128))
