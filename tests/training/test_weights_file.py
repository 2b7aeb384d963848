"""Weights on disk: whole or not at all, and refused by name when they do not fit."""

import os

import pytest
import torch
from safetensors.torch import save_file
from tiny_runs import network

from normfree import RunFailed, UsageError
from normfree.training import load_weights, read_weights, save_weights, weights_file

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(7), "c": torch.ones(3, dtype=torch.bfloat16)}


def full_disk(*args, **kwargs):
    raise OSError(28, "No space left on device")


def identical(state, expected) -> bool:
    return state.keys() == expected.keys() and all(torch.equal(state[k], expected[k]) for k in expected)


def test_tensors_and_description_come_back(tmp_path):
    description = dict(classes=["ä", "b"], step=3, score=0.1, nested=dict(none=None, list=[1, 2]))
    path = tmp_path / "deep" / "er" / "w.safetensors"
    save_weights(path, STATE, description)
    state, read = read_weights(path)
    assert identical(state, STATE)
    assert {k: v.dtype for k, v in state.items()} == {k: v.dtype for k, v in STATE.items()}
    assert read == description
    assert [p.name for p in path.parent.iterdir()] == ["w.safetensors"]


def test_any_layout_is_saved(tmp_path):
    weight = torch.randn(4, 3, 2, 2, requires_grad=True)
    state = {
        "last": weight.to(memory_format=torch.channels_last),
        "turned": weight.transpose(0, 3),
        "parameter": weight,
    }
    save_weights(tmp_path / "w.safetensors", state, {})
    assert identical(read_weights(tmp_path / "w.safetensors")[0], state)


def test_saving_replaces(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, STATE, dict(step=1))
    save_weights(path, {"a": torch.zeros(1)}, dict(step=2))
    state, description = read_weights(path)
    assert identical(state, {"a": torch.zeros(1)})
    assert description == dict(step=2)


@pytest.mark.parametrize("where", ["replace", "save"])
def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch, where):
    path = tmp_path / "w.safetensors"
    save_weights(path, STATE, dict(step=1))
    monkeypatch.setattr(*((os, "replace") if where == "replace" else (weights_file, "save_file")), full_disk)
    with pytest.raises(RunFailed, match=r"cannot write .*w\.safetensors: .*No space left on device"):
        save_weights(path, {"a": torch.zeros(1)}, dict(step=2))
    assert identical(read_weights(path)[0], STATE)
    assert read_weights(path)[1] == dict(step=1)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]  # no half-written file is left


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFailed, match=r"cannot write .*file/w\.safetensors"):
        save_weights(tmp_path / "file" / "w.safetensors", STATE, {})


def missing(path):
    pass


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("hello " * 50)


def a_folder(path):
    path.mkdir()


def pickled(path):
    torch.save(STATE, path)


def truncated(path):
    save_weights(path, STATE, {})
    path.write_bytes(path.read_bytes()[:-5])


def header_cut(path):
    save_weights(path, STATE, {})
    path.write_bytes(path.read_bytes()[:20])


def foreign(path):
    save_file(STATE, path)


def foreign_metadata(path):
    save_file(STATE, path, metadata={"format": "pt"})


def broken_description(path):
    save_file(STATE, path, metadata={"normfree": "{not json"})


@pytest.mark.parametrize(
    "spoil",
    [missing, empty, text, a_folder, pickled, truncated, header_cut, foreign, foreign_metadata, broken_description],
)
def test_an_unusable_file_is_named(tmp_path, spoil):
    path = tmp_path / "w.safetensors"
    spoil(path)
    with pytest.raises(UsageError, match=r"w\.safetensors") as caught:
        read_weights(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "told"), [("momentum", "the momentum of the optimizer"), ("random", "the random states")]
)
@pytest.mark.parametrize("beside", [[], ["weights"], ["weights", "ema"]], ids=len)
def test_other_parts_of_a_checkpoint_are_no_weights(tmp_path, kind, told, beside):
    path = tmp_path / f"{kind}.safetensors"
    for part in (kind, *beside):
        save_weights(tmp_path / f"{part}.safetensors", network().state_dict(), dict(kind=part))
    wanted = " or ".join(f"{part}.safetensors" for part in beside) + " beside it" if beside else "a file of weights"
    with pytest.raises(UsageError, match=f"^{path} is {told} of a run, not weights; give {wanted}$"):
        read_weights(path)
    for part in beside:
        assert read_weights(tmp_path / f"{part}.safetensors")[1] == dict(kind=part)


def test_loading_fills_the_model():
    source, model = network(), network()
    assert not identical(dict(source.state_dict()), dict(model.state_dict()))
    load_weights(model, source.state_dict(), "here")
    assert identical(dict(source.state_dict()), dict(model.state_dict()))
    assert all(p.requires_grad for p in model.parameters())


def without_bias(state):
    del state["stem.conv.bias"]


def with_more(state):
    state["other.weight"] = torch.zeros(1)


def other_shape(state):
    state["head.fc.weight"] = torch.zeros(5, 32)


def nothing(state):
    state.clear()


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (without_bias, r"1 missing \(stem\.conv\.bias\)"),
        (with_more, r"1 extra \(other\.weight\)"),
        (other_shape, r"head\.fc\.weight has shape \(5, 32\), the model needs \(10, 32\)"),
        (nothing, r"\d\d missing \((\S+, ){4}\.\.\.\)"),
    ],
)
def test_another_architecture_is_refused_by_name(spoil, named):
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = {k: torch.zeros_like(v) for k, v in before.items()}
    spoil(state)
    with pytest.raises(UsageError, match=named) as caught:
        load_weights(model, state, "some/file")
    assert str(caught.value).startswith("some/file is a checkpoint of another architecture: ")
    assert len(str(caught.value).splitlines()) == 1
    assert identical(dict(model.state_dict()), before)
