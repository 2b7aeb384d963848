"""Networks of torchvision and timm that start from weights of their own, before or after their conversion."""

import pytest
import timm
import torch
from foreign_blocks import collect
from torch import nn

from normfree import UsageError
from normfree.nn import WSConv2d, batch_norms
from normfree.runs import load, train

NETWORK = {"model.name": "timm:test_resnet"}
SHORT = {
    **{"train.steps": 2, "train.batch_size": 2, "train.log_every": 1, "train.device": "cpu", "optim.warmup_epochs": 0},
    **{"data.image_size": 32, "data.test_size": 32, "optim.ema_decay": None, "optim.clipping": 0.01},
}
STILL = {"optim.lr": 1e-12}  # weights stay as they were loaded
KEPT = NETWORK | STILL | {"model.convert": "keep"}


def run(photos_folder, out, init=None, **fields):
    source = {"data.source": f"imagefolder:{photos_folder}"}
    return train("folder", SHORT | source | fields, out=out, init=init, progress=False)


def trained(classes=3, **options) -> nn.Module:
    torch.manual_seed(1)
    return collect(timm.create_model("test_resnet", num_classes=classes, **options)).eval()


def close(a, b) -> bool:
    return bool((a - b).norm() <= 1e-4 * b.norm())


@pytest.fixture(scope="module")
def classes(photos_folder) -> int:
    return sum(path.is_dir() for path in photos_folder.iterdir())


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_kept_network_has_the_outputs_of_the_weights(photos_folder, classes, tmp_path, prefix, capsys):
    net, x = trained(classes), torch.randn(2, 3, 32, 32)
    torch.save({"state_dict": {prefix + key: value for key, value in net.state_dict().items()}}, tmp_path / "net.pth")
    finished = run(photos_folder, tmp_path / "run", tmp_path / "net.pth", **KEPT)
    model = finished.trainer.model.eval()
    assert not batch_norms(model)
    with torch.no_grad():
        assert close(model(x), net(x))
        assert close(load(tmp_path / "run").model(x), net(x))
    assert f"weights from {tmp_path / 'net.pth'}" in capsys.readouterr().err


def test_a_new_classifier_and_the_features_of_the_weights(photos_folder, classes, tmp_path, capsys):
    net, x = trained(classes + 2), torch.randn(2, 3, 32, 32)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    finished = run(photos_folder, tmp_path / "run", tmp_path / "net.pth", **KEPT)
    model = finished.trainer.model.eval()
    features = {}
    for one in (net, model):
        one.fc.register_forward_pre_hook(lambda m, args: features.setdefault(m, args[0]))
        with torch.no_grad():
            one(x)
    assert close(features[model.fc], features[net.fc])
    assert f"with a new classifier ({classes} classes instead of {classes + 2})" in capsys.readouterr().err


def test_a_rebuilt_network_takes_the_weights_of_the_layers(photos_folder, classes, tmp_path, capsys):
    net = trained(classes)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    fields = NETWORK | STILL | {"model.convert": "rebuild"}
    model = run(photos_folder, tmp_path / "run", tmp_path / "net.pth", **fields).trainer.model
    layers = {name: m for name, m in model.named_modules() if isinstance(m, WSConv2d)}
    assert layers
    assert all(torch.allclose(m.weight, net.get_submodule(name).weight, atol=1e-6) for name, m in layers.items())
    assert "without the factors and statistics of its normalization" in capsys.readouterr().err


@pytest.mark.parametrize("convert", [None, "keep", "rebuild"])
def test_a_run_starts_from_a_run(photos_folder, classes, tmp_path, convert):
    """Without --model the network is that of the run, with its constants."""
    torch.save(trained(classes).state_dict(), tmp_path / "net.pth")
    run(photos_folder, tmp_path / "one", tmp_path / "net.pth", **NETWORK, **{"model.convert": convert})
    run(photos_folder, tmp_path / "two", tmp_path / "one", **STILL)
    one, two = load(tmp_path / "one"), load(tmp_path / "two")
    assert (two.recipe.model.name, two.recipe.model.convert) == ("timm:test_resnet", convert)
    assert two.recipe.model.constants == one.recipe.model.constants
    if convert is not None:  # statistics of BatchNorm follow the images
        x = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            assert close(two.model(x), one.model(x))


def test_parts_stay_frozen(photos_folder, classes, tmp_path):
    net = trained(classes)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    fields = {"model.convert": "keep", "optim.lr": 0.1, "optim.frozen": ["conv1", "layer[12]", "*.gain"]}
    finished = run(photos_folder, tmp_path / "run", tmp_path / "net.pth", **NETWORK, **fields)
    model, before = finished.trainer.model, dict(net.named_parameters())
    moved = {name for name, p in model.named_parameters() if name in before and not torch.equal(p, before[name])}
    assert "layer3.0.conv1.weight" in moved
    assert not [name for name in moved if name.startswith(("conv1", "layer1", "layer2"))]
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {name for name in frozen if name.startswith("layer3")} == {
        name for name, _ in model.named_parameters() if name.startswith("layer3") and name.endswith("gain")
    }


def test_messages(photos_folder, classes, tmp_path):
    net = trained(classes)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    torch.save(timm.create_model("test_resnet", num_classes=classes).state_dict(), tmp_path / "untrained.pth")
    torch.save(timm.create_model("test_efficientnet", num_classes=classes).state_dict(), tmp_path / "other.pth")
    cases = {
        "untrained.pth": ("keep", {}, r"model.convert \(=keep\): .*running statistics were never collected"),
        "other.pth": (None, {}, "other.pth is a checkpoint of another architecture: .* missing"),
        "net.pth": ("keep", {"model.options": {"pretrained": True}}, "--init and model.options.pretrained both give"),
    }
    for file, (convert, more, message) in cases.items():
        with pytest.raises(UsageError, match=message):
            run(photos_folder, tmp_path / "a", tmp_path / file, **NETWORK, **{"model.convert": convert}, **more)
    for convert, message in dict(keep="checkpoint of another arch", rebuild="no constants of a rebuilt").items():
        with pytest.raises(UsageError, match=message):
            run(photos_folder, tmp_path / "a", tmp_path / "other.pth", **NETWORK, **{"model.convert": convert})
    run(photos_folder, tmp_path / "kept", tmp_path / "net.pth", **NETWORK, **{"model.convert": "keep"})
    with pytest.raises(UsageError, match=r"kept.* has model.convert keep; this network has rebuild"):
        run(photos_folder, tmp_path / "a", tmp_path / "kept", **NETWORK, **{"model.convert": "rebuild"})
    with pytest.raises(UsageError, match=r"is of timm:test_resnet, and the recipe trains torchvision:resnet18"):
        train("cifar10_resnet18", out=tmp_path / "a", init=tmp_path / "kept", progress=False)
