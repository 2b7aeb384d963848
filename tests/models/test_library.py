"""Networks of torchvision and timm by name."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from normfree import UsageError
from normfree.models.config import ModelConfig
from normfree.models.library import build_library, classifier, is_library
from normfree.nn import parameter_roles


def test_it_is_the_network_of_torchvision():
    torch.manual_seed(3)
    ours = build_library("torchvision:resnet18", num_classes=7)
    torch.manual_seed(3)
    theirs = torchvision.models.resnet18(num_classes=7)
    assert type(ours) is torchvision.models.ResNet
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())


def test_it_is_the_network_of_timm():
    torch.manual_seed(3)
    ours = build_library("timm:test_resnet", {"act_layer": "silu"}, num_classes=7, in_chans=1)
    torch.manual_seed(3)
    theirs = timm.create_model("test_resnet", num_classes=7, in_chans=1, act_layer="silu")
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    assert ours.default_cfg["input_size"] == (1, 160, 160)


@pytest.mark.parametrize(("in_chans", "bottleneck"), [(3, False), (1, True)])
def test_the_stem_of_small_images(in_chans, bottleneck):
    """A 3x3 convolution of stride 1 and no pooling: four times the places on each side."""
    name = "torchvision:resnet50" if bottleneck else "torchvision:resnet18"
    with torch.device("meta"):
        model = build_library(name, {"small_images": True}, num_classes=10, in_chans=in_chans)
        stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool, model.layer1)
        assert stem(torch.zeros(2, in_chans, 32, 32)).shape[2:] == (32, 32)
    assert model.conv1.weight.shape == (64, in_chans, 3, 3)
    assert model.default_cfg["input_size"] == (in_chans, 32, 32)


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "torchvision:regnet_y_400mf"])
def test_other_channels_change_the_first_layer_only(name):
    with torch.device("meta"):
        grey, rgb = (build_library(name, num_classes=5, in_chans=n) for n in (1, 3))
        assert grey(torch.zeros(2, 1, 64, 64)).shape == (2, 5)
    differing = [n for n, p in grey.named_parameters() if p.shape != dict(rgb.named_parameters())[n].shape]
    assert len(differing) == 1
    assert dict(grey.named_parameters())[differing[0]].shape[1] == 1


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("torchvision:resnet18", "fc.weight"),
        ("torchvision:mobilenet_v3_small", "classifier.3.weight"),
        ("torchvision:squeezenet1_1", "classifier.1.weight"),
        ("timm:test_efficientnet", "classifier.weight"),
        ("timm:test_convnext", "head.fc.weight"),
    ],
)
def test_the_classifier_is_declared(name, weight):
    with torch.device("meta"):
        model = build_library(name, num_classes=5)
    roles = parameter_roles(model)
    assert [key for key, role in roles.items() if role.value == "classifier"] == [weight]
    assert dict(model.named_parameters())[weight].shape[0] == 5


def test_trained_weights_with_another_classifier(monkeypatch):
    """The weights of torchvision are replaced by others here; what is asked for and what becomes of it is real."""
    state = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda url, **options: state)
    model = build_library("torchvision:resnet18", {"weights": "IMAGENET1K_V1"}, num_classes=4)
    assert torch.equal(model.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])
    assert model.fc.weight.shape == (4, 512)
    bare = build_library("torchvision:resnet18", {"weights": "IMAGENET1K_V1"}, num_classes=4, trained=False)
    assert not torch.equal(bare.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])


def test_names():
    assert is_library("timm:resnet18")
    assert not is_library("timm_nf_resnet26")
    assert not is_library("torchvision")
    assert not is_library("os:system")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("torchvision:resnet19", {}, "model 'resnet19' of torchvision is unknown; did you mean resnet18"),
        ("torchvision:maskrcnn_resnet50_fpn", {}, "of torchvision is unknown"),  # no network for whole images
        ("timm:hf-hub:someone/model", {}, "of timm is unknown"),
        ("timm:test_resnet", {"checkpoint_path": "x.pth"}, "option checkpoint_path of timm is not taken from a recipe"),
        ("timm:test_resnet", {"pretrained_cfg_overlay": {"file": "x.pth"}}, "option pretrained_cfg_overlay of timm"),
        ("timm:test_resnet", {"cache_dir": "/"}, "option cache_dir of timm"),
        ("timm:test_resnet", {"widths": 3}, r"options \(=.*\) do not build timm:test_resnet"),
        ("torchvision:resnet18", {"weights": "../../x"}, r"option weights \(='../../x'\) of resnet18 must be one of"),
        ("torchvision:resnet18", {"weights": "DEFAULT", "small_images": True}, "for the stem of resnet18 as it is"),
        ("torchvision:vgg11_bn", {"small_images": True}, "for the ResNets of torchvision; vgg11_bn is none"),
        ("torchvision:resnet18", {"small_images": 3}, r"small_images \(=3\) must be true or false"),
        ("torchvision:resnet18", {"num_classes": 3}, "option num_classes is not for torchvision:resnet18"),
        ("torchvision:googlenet", {}, "take the option aux_logits=False"),
    ],
)
def test_refused(name, options, message):
    with torch.device("meta"), pytest.raises(UsageError, match=message):
        build_library(name, options, num_classes=10)
    with torch.device("meta"), pytest.raises(UsageError, match=message):
        ModelConfig(name, options=options).build_library(num_classes=10, in_chans=3, trained=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(name="nf_resnet50", convert="rebuild"), "model.convert is for networks of torchvision and timm"),
        (dict(name="timm:test_resnet", constants={"conv1": 1.0}), "model.constants are for model.convert rebuild"),
        (dict(name="timm:test_resnet", drop_rate=0.1), "model.drop_rate must be null for 'timm:test_resnet'"),
    ],
)
def test_fields_that_do_not_fit(fields, message):
    with pytest.raises(UsageError, match=message):
        ModelConfig(**fields)


def test_a_kept_network_needs_weights():
    config = ModelConfig("timm:test_resnet", convert="keep")
    with pytest.raises(UsageError, match=r"goes on from trained weights: add --model.options.pretrained true"):
        config.build_library(num_classes=3, in_chans=3, trained=True)


def test_a_network_without_a_classifier_is_refused():
    with pytest.raises(UsageError, match="has no layer that could be its classifier"):
        classifier(nn.Sequential(nn.ReLU()))
