"""What a checkpoint holds beside the weights that are taken: a classifier, raw weights, values that are no numbers."""

import pytest
import torch
from small_models import shake

import normfree
from normfree import UsageError
from normfree.weights import load_timm, to_timm

NAME = "timm_test_nfnet"


@pytest.fixture(scope="module")
def models():
    """Two of seven classes."""
    torch.manual_seed(0)
    return [shake(normfree.create_model(NAME, num_classes=7)) for _ in range(2)]


def state(model, backbone: str = "", head: str = ""):
    return {(head if "head" in k else backbone) + k: v for k, v in model.state_dict().items()}


def same(model, other) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("backbone", "head"),
    [("backbone.", ""), ("model.backbone.", "model."), ("module.net.encoder.", "module."), ("model.backbone.", "")],
)
@pytest.mark.parametrize("classes", [None, 7])
def test_a_classifier_beside_the_backbone_is_taken(models, backbone, head, classes, tmp_path, recwarn):
    torch.save({"state_dict": state(models[0], backbone, head)}, tmp_path / "a.ckpt")
    loaded = normfree.create_model(NAME, pretrained=tmp_path / "a.ckpt", num_classes=classes)
    assert loaded.num_classes == 7
    assert same(loaded, models[0])
    assert not recwarn.list


def test_the_backbones_own_classifier_is_taken_before_another(models, tmp_path):
    content = state(models[0], "backbone.", "backbone.") | {"head.fc.weight": torch.ones(3, 5)}
    torch.save(content, tmp_path / "a.pth")
    with pytest.warns(UserWarning, match=r"1 tensor is not under backbone. and is left out \(head.fc.weight\)$"):
        assert same(normfree.create_model(NAME, pretrained=tmp_path / "a.pth"), models[0])


def test_a_classifier_of_another_name_is_left_out_and_that_is_said(models, tmp_path):
    content = state(models[0], "backbone.")
    content = {name.replace("head.fc", "classifier"): value for name, value in content.items()}
    torch.save(content, tmp_path / "a.pth")
    with pytest.warns(UserWarning, match=r"2 tensors are not under backbone. and are left out \(classifier.weight"):
        assert normfree.create_model(NAME, pretrained=tmp_path / "a.pth").num_classes == 0


def both(raw, ema):
    return {
        "timm's": dict(state_dict=state(raw), state_dict_ema=state(ema)),
        "an object": dict(model=state(raw), ema=dict(module=state(ema), decay=0.999)),
        "lightning": dict(state_dict=state(raw, "model.", "model.") | state(ema, "ema_model.", "ema_model.")),
    }


@pytest.mark.parametrize("case", both(*[torch.nn.Identity()] * 2))
def test_the_average_is_taken_and_that_is_said(models, case, tmp_path):
    import timm

    import normfree.timm

    raw, ema = models
    path = tmp_path / "a.ckpt"
    torch.save(both(raw, ema)[case], path)
    with pytest.warns(UserWarning, match="a.ckpt, the weights under .* are taken, not those under"):
        assert same(normfree.create_model(NAME, pretrained=path), ema)
    with pytest.warns(UserWarning, match="are taken, not those under"):
        assert same(normfree.create_model(NAME, pretrained=path, weights="raw"), raw)
    with pytest.warns(UserWarning, match="are taken, not those under"):
        assert same(timm.create_model(f"normfree_{NAME}", checkpoint_path=str(path)), ema)
    with pytest.warns(UserWarning, match="are taken, not those under"):
        load_timm_of(both(raw, ema)[case], tmp_path)


def load_timm_of(content, folder):
    """:func:`load_timm` of the same file, by timm's names."""
    torch.manual_seed(0)
    model = normfree.create_model(NAME, num_classes=7)
    renamed = dict(state_dict=to_timm(model), state_dict_ema=to_timm(model.requires_grad_(False).apply(shake)))
    torch.save(renamed, folder / "timms.pth")
    load_timm(model, folder / "timms.pth")


def test_weights_that_cannot_be_chosen(models, tmp_path):
    torch.save(models[0].state_dict(), tmp_path / "a.pth")
    with pytest.raises(UsageError, match="has no averaged weights"):
        normfree.create_model(NAME, pretrained=tmp_path / "a.pth", weights="ema")
    with pytest.raises(UsageError, match=r'^weights \(=\'mean\'\) must be "ema" or "raw"$'):
        normfree.create_model(NAME, pretrained=tmp_path / "a.pth", weights="mean")
    for pretrained in (False, None, True):
        with pytest.raises(UsageError, match=r"^weights \(='raw'\) chooses among those of a file"):
            normfree.create_model(NAME, pretrained=pretrained, weights="raw")


def test_a_state_dict_is_taken_as_a_file_would_be(models, recwarn):
    assert same(normfree.create_model(NAME, pretrained=models[0].state_dict()), models[0])
    assert same(normfree.create_model(NAME, pretrained=dict(model=to_timm(models[0]))), models[0])
    assert not recwarn.list


@pytest.mark.parametrize("pretrained", ["", 0, [1.0]])
def test_what_is_no_file_is_refused(pretrained):
    with pytest.raises(UsageError, match=r"^pretrained \(=.*\) must be True, False, a file, or a state dict$"):
        normfree.create_model(NAME, pretrained=pretrained)


def test_values_that_are_not_finite_are_said(models, tmp_path):
    content = {k: torch.full_like(v, torch.nan) if "head" in k else v for k, v in state(models[0]).items()}
    torch.save(content, tmp_path / "a.pth")
    with pytest.warns(UserWarning, match=r"2 tensors .*not finite \(head.fc.weight, head.fc.bias\)$"):
        normfree.create_model(NAME, pretrained=tmp_path / "a.pth")
    with pytest.warns(UserWarning, match="not finite"):
        normfree.create_model(NAME, pretrained=content)


def test_the_same_tensors_twice_are_one_set(models, tmp_path, recwarn):
    content = state(models[0])
    torch.save({"state_dict": content, "model": content}, tmp_path / "a.pth")
    assert same(normfree.create_model(NAME, pretrained=tmp_path / "a.pth"), models[0])
    assert same(normfree.create_model(NAME, pretrained={"state_dict": content, "model": dict(content)}), models[0])
    assert not recwarn.list
    other = {"state_dict": content, "model": state(models[1])}
    with pytest.raises(UsageError, match="several sets of weights"):
        normfree.create_model(NAME, pretrained=other)


def test_features_from_a_file(models, tmp_path):
    import timm

    import normfree.timm  # noqa: F401

    torch.save(state(models[0], "module.", "module."), tmp_path / "a.pth")
    features = timm.create_model(f"normfree_{NAME}", features_only=True, checkpoint_path=str(tmp_path / "a.pth"))
    taken = features.state_dict()
    assert all(torch.equal(taken[f"model.{k}"], v) for k, v in state(models[0]).items() if f"model.{k}" in taken)
    assert any(name.startswith("model.stages.3") for name in taken)


def test_the_command_line_says_which_weights_it_takes(models, tmp_path, monkeypatch, capsys):
    from normfree.runs.load import load_trained

    monkeypatch.chdir(tmp_path)
    torch.save(both(*models)["timm's"], "a.pth")
    assert same(load_trained("a.pth").model, models[1])
    assert (
        "a.pth: the weights under 'state_dict_ema' are taken, not those under 'state_dict'" in capsys.readouterr().err
    )
