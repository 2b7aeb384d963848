"""Everyone's checkpoints: read whatever they are called, and nothing in them is run."""

import argparse
import collections
import pathlib
import pickle
import tarfile
import types
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_models import shake, small

import normfree
from normfree import UsageError
from normfree.weights import to_haiku, to_timm
from normfree.weights.file import FileKind, file_kind, read_weights_file

NAME = "timm_test_nfnet"


class Loud:
    """Of a module that the reader must not import: unpickling it would make a folder."""

    def __reduce__(self):
        return pathlib.Path.mkdir, (pathlib.Path("canary"),)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return shake(normfree.create_model(NAME, num_classes=10))


def training(model, **more):
    """What training scripts save beside the weights."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    model.zero_grad(set_to_none=True)
    space = argparse.Namespace(lr=0.1, out=pathlib.Path("x"), sizes=collections.defaultdict(list, a=[1]))
    numbers = dict(best=np.float64(0.5), history=np.arange(3), best_acc1=torch.tensor(76.5))
    return dict(args=space, optimizer=optimizer.state_dict(), loud=Loud(), spectrum=torch.ones(2) * 1j) | numbers | more


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("suffix", ["pth.tar", "ckpt", "bin", "pt", "pth", "weights"])
def test_checkpoints_of_training_scripts(network, folder, suffix, legacy):
    if legacy and suffix not in ("pth.tar", "bin"):
        pytest.skip("the format does not depend on the name")
    state = {name: value.clone() for name, value in network.state_dict().items()}
    content = training(network, state_dict={f"module.{name}": value for name, value in state.items()})
    torch.save(content, f"a.{suffix}", _use_new_zipfile_serialization=not legacy)
    assert file_kind(f"a.{suffix}") is FileKind.TORCH
    read = read_weights_file(f"a.{suffix}")
    assert (read.form, read.tensors.keys()) == ("normfree", state.keys())
    assert all(torch.equal(value, state[name]) for name, value in read.tensors.items())
    assert not pathlib.Path("canary").exists()


def test_objects_are_placeholders(folder, monkeypatch):
    """The module that a file names may not even exist here."""
    module = types.ModuleType("somewhere")
    module.Config = type("Config", (dict,), dict(__module__="somewhere", __qualname__="Config"))
    monkeypatch.setitem(__import__("sys").modules, "somewhere", module)
    config = module.Config(a=1)
    config.more = [1]
    torch.save(dict(config=config, state_dict={"stages.0.0.conv0.weight": torch.ones(2)}), "a.pth")
    monkeypatch.delitem(__import__("sys").modules, "somewhere")
    assert torch.equal(read_weights_file("a.pth").tensors["stages.0.0.conv0.weight"], torch.ones(2))


def test_shared_strided_and_half_tensors(folder):
    base = torch.arange(12.0).view(3, 4)
    state = dict(a=base, b=base.T, c=base[1:, ::2], d=base.half(), e=base.bfloat16(), f=torch.empty(0, 3), g=base[0, 0])
    for legacy in (False, True):
        torch.save(state, "a.pth", _use_new_zipfile_serialization=not legacy)
        read = read_weights_file("a.pth").tensors
        assert all(torch.equal(read[name], value) and read[name].dtype == value.dtype for name, value in state.items())


def test_the_content_decides(network, folder):
    """Whatever the file is called."""
    state = to_timm(network)
    torch.save(state, "really_torch.safetensors")
    save_file(state, "really_safetensors.bin")
    pathlib.Path("really_authors.pth").write_bytes(pickle.dumps(to_haiku(small("nfnet_f0"))))
    assert file_kind("really_torch.safetensors") is FileKind.TORCH
    assert file_kind("really_safetensors.bin") is FileKind.SAFETENSORS
    pathlib.Path("really_authors.pth").rename("authors")
    assert file_kind("authors") is FileKind.AUTHORS
    for name in ("really_torch.safetensors", "really_safetensors.bin"):
        assert read_weights_file(name).form == "timm"


def test_what_is_no_file_of_weights_is_named(network, folder):
    pathlib.Path("lfs.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    pathlib.Path("page.pth").write_text("<!DOCTYPE html><html></html>")
    pathlib.Path("notes.txt").write_text("hello")
    torch.save(network, "whole.pt")
    np.savez("arrays.npz", a=np.ones(2))
    with warnings.catch_warnings(action="ignore"):  # torch is about to drop it
        torch.jit.script(torch.nn.Linear(2, 2)).save("script.pt")
    with tarfile.open("old.tar", "w") as archive:
        archive.add("notes.txt")
    for name, said in {
        "lfs.safetensors": "a pointer of Git LFS",
        "page.pth": "a web page",
        "notes.txt": "no file of weights that is known; there are .safetensors",
        "whole.pt": r"TimmNFNet, not a state dict; save the state_dict\(\)",
        "arrays.npz": "a NumPy archive",
        "script.pt": "a TorchScript archive; save the state_dict",
        "old.tar": "truncated, or was not written by torch.save",
        "nowhere.pth": "does not exist",
    }.items():
        with pytest.raises(UsageError, match=f"{name} .*{said}"):
            read_weights_file(name)
