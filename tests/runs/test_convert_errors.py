"""`normfree convert` with what it cannot use: one line, and every file as it was."""

import os
import pickle

import pytest
import torch
from convertible import FORMS, NFNET, write_authors, write_theirs
from safetensors.torch import load_file, save_file
from unprivileged import public_folder, unprivileged

import normfree as library
from normfree.cli import main
from normfree.runs import convert as verb
from normfree.runs.load import load_trained
from normfree.weights import to_timm


def folder(path):
    return sorted(p.name for p in path.iterdir())


BAD = {
    "no form": (["theirs.safetensors", "x.safetensors"], "x.safetensors may hold two forms; say --to timm or --to"),
    "wrong ending": (["theirs.safetensors", "x.npz", "--to", "normfree"], "normfree's form is a .safetensors file"),
    "unknown ending": (["theirs.safetensors", "x.onnx"], "ending '.onnx'; give it .npz or .safetensors"),
    "no source": (["nowhere.npz", "x.safetensors", "--to", "timm"], "nowhere.npz does not exist; give a run folder"),
    "what source": (
        ["theirs.onnx", "x.npz"],
        "theirs.onnx is an exported file, whose weights are folded; give the run",
    ),
    "no folder": (["theirs.safetensors", "a/x.safetensors", "--to", "normfree"], "folder a does not exist"),
    "a folder": (["theirs.safetensors", "folder.safetensors", "--to", "normfree"], "is there and not a file"),
    "exists": (["theirs.safetensors", "there.safetensors", "--to", "normfree"], "exists already; --overwrite"),
    "itself": (["theirs.safetensors", "theirs.safetensors", "--to", "normfree", "--overwrite"], "are the same file"),
    "a link to itself": (["theirs.safetensors", "link.safetensors", "--to", "normfree"], "are the same file"),
    "same form": (["theirs.safetensors", "x.safetensors", "--to", "timm"], "is in timm's form already"),
    "no counterpart": (["theirs.safetensors", "x.npz"], "TimmNFNet (family 'timm') has no Haiku counterpart"),
    "other model": (
        ["theirs.safetensors", "x.safetensors", "--to", "normfree", "--model", "nfnet_f0"],
        "theirs.safetensors has the tensors of timm_test_nfnet, not of nfnet_f0",
    ),
    "unknown model": (
        ["theirs.safetensors", "x.safetensors", "--to", "normfree", "--model", "test_nfnet"],
        "model 'test_nfnet' is unknown; did you mean timm_test_nfnet",
    ),
    "not named": (["small.npz", "x.safetensors", "--to", "timm"], "are of no model in haiku's naming; name it with"),
    "missing": (["short.safetensors", "x.safetensors", "--to", "normfree", "--model", "timm_test_nfnet"], "1 missing"),
    "extra": (["long.safetensors", "x.safetensors", "--to", "normfree", "--model", "timm_test_nfnet"], "1 extra (more"),
    "truncated": (["cut.safetensors", "x.safetensors", "--to", "normfree"], "cut.safetensors cannot be read"),
    "truncated pickle": (["cut.npz", "x.safetensors", "--to", "normfree"], "cut.npz is truncated"),
    "truncated pth": (["cut.pth", "x.safetensors", "--to", "normfree"], "cut.pth is truncated"),
    "headless": (["headless.safetensors", "x.safetensors", "--to", "normfree"], "0 classes; a normfree file is of a"),
    "option": (
        ["theirs.safetensors", "x.safetensors", "--to", "normfree", "--quite"],
        "unrecognized arguments: --quite",
    ),
    "field": (
        ["theirs.safetensors", "x.safetensors", "--to", "normfree", "--data.mena", "1"],
        "--data.mena is unknown",
    ),
    "data": (
        ["small.npz", "x.safetensors", "--to", "timm", *NFNET, "--data.mean", "[1,1,1]"],
        "--data.mean is for --to",
    ),
    "checkpoint": (["small.npz", "x.safetensors", "--to", "timm", "--weights", "raw"], "small.npz is one file"),
    "says itself": (
        ["there.safetensors", "x.safetensors", "--to", "timm", "--model", "nfnet_f0"],
        "says which network",
    ),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of every file that cannot be used; no test changes it."""
    made = tmp_path_factory.mktemp("files")
    theirs, authors = write_theirs(made), write_authors(made).rename(made / "small.npz")
    state = load_file(theirs)
    save_file({name: tensor for name, tensor in state.items() if name != "head.fc.bias"}, made / "short.safetensors")
    save_file(state | {"more": torch.ones(1)}, made / "long.safetensors")
    torch.save(state, made / "cut.pth")
    for name, whole in (("cut.safetensors", theirs), ("cut.npz", authors), ("cut.pth", made / "cut.pth")):
        (made / name).write_bytes(whole.read_bytes()[:-2000])
    for name, options in (("headless", dict(num_classes=0)),):
        save_file(to_timm(library.create_model("timm_test_nfnet", **options)), made / f"{name}.safetensors")
    assert main(["convert", str(theirs), str(made / "there.safetensors"), "--to", "normfree"]) == 0
    (made / "folder.safetensors").mkdir()
    (made / "theirs.onnx").touch()
    (made / "link.safetensors").symlink_to("theirs.safetensors")
    return made


@pytest.mark.parametrize("case", BAD)
def test_unusable_input_is_one_line(normfree, files, monkeypatch, case):
    monkeypatch.chdir(files)
    arguments, said = BAD[case]
    before = {path.name: path.read_bytes() for path in files.iterdir() if path.is_file()}
    result = normfree("convert", *arguments)
    assert result.code == 2
    assert said in result.error
    assert result.out == ""
    assert {path.name: path.read_bytes() for path in files.iterdir() if path.is_file()} == before


def test_overwriting(normfree, theirs):
    dest = theirs.with_name("x.safetensors")
    dest.write_bytes(b"mine")
    assert normfree("convert", theirs, dest, "--to", "normfree").code == 2
    assert dest.read_bytes() == b"mine"
    assert normfree("convert", theirs, dest, "--to", "normfree", "--overwrite").code == 0
    assert load_trained(str(dest)).recipe.model.name == "timm_test_nfnet"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_does_not_end_leaves_nothing(normfree, authors, monkeypatch, form, error):
    source = authors
    if form == "haiku":
        source = authors.with_name("source.safetensors")
        assert normfree("convert", authors, source, "--to", "timm", *NFNET).code == 0
    dest = authors.with_name(f"x.{FORMS[form]}")
    before = folder(authors.parent)

    def fail(tensors, file, *args, **kwargs):
        open(file if isinstance(file, os.PathLike) else file.name, "wb").close()
        raise error

    monkeypatch.setattr(pickle, "dump", fail)
    monkeypatch.setattr(verb, "save_file", fail)
    monkeypatch.setattr("normfree.training.weights_file.save_file", fail)
    result = normfree("convert", source, dest, "--to", form, *NFNET)
    interrupted = isinstance(error, KeyboardInterrupt)
    assert result.code == (130 if interrupted else 1)
    assert ("interrupted" if interrupted else f"cannot write {dest}: [Errno 28] No space left") in result.error
    assert folder(authors.parent) == before


def test_a_folder_that_must_not_be_written_to(normfree):
    with public_folder() as public:
        theirs = write_theirs(public)
        theirs.chmod(0o644)
        (public / "closed").mkdir(mode=0o555)
        with unprivileged():
            result = normfree("convert", theirs, public / "closed" / "x.safetensors", "--to", "normfree")
    assert result.code == 1
    assert "cannot write" in result.error
