"""Damaged and hostile files of weights: refused in one line, or read as they are; nothing of theirs is executed."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
from hostile_weights import (
    DESCRIPTION,
    HOSTILE,
    HUGE,
    MALFORMED,
    changed,
    entry,
    outcomes,
    refused,
    safetensors,
    written,
)
from selection import share
from tiny_runs import network
from unprivileged import public_folder, unprivileged

import normfree
from normfree.cli import main
from normfree.runs.initialize import initialize
from normfree.runs.load import load_trained
from normfree.weights import load_haiku, load_timm, to_haiku


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_safetensors(folder, capsys, case):
    (folder / "w.safetensors").write_bytes(MALFORMED[case])
    assert all(outcomes("w.safetensors", capsys))


@pytest.mark.parametrize(
    "dtype", ["BOOL", "I64", "U8", "U64", "C64", "F4", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F16", "F64"]
)
def test_other_number_types(folder, state, timms, capsys, dtype):
    """The classifier's bias as another type of as many numbers: read, if they are floating-point numbers."""
    size = dict(BOOL=1, I64=8, U8=1, U64=8, C64=8, F16=2, F64=8).get(dtype, 1) * 10
    size = 5 if dtype == "F4" else size
    for tensors, metadata in ((state, dict(normfree=json.dumps(DESCRIPTION))), (timms, dict(format="pt"))):
        header, data = dict(__metadata__=metadata), b""
        for name, tensor in tensors.items():
            value = bytes(size) if name == "head.fc.bias" else tensor.contiguous().numpy().tobytes()
            offsets = (len(data), len(data) + len(value))
            header[name] = entry(tensor.shape, offsets, dtype if name == "head.fc.bias" else "F32")
            data += value
        (folder / "w.safetensors").write_bytes(safetensors(header, data))
        opened = outcomes("w.safetensors", capsys)
        mine = [opened[0], opened[3]] if tensors is state else [opened[2]]
        assert set(mine) == {dtype not in ("F16", "F64")}


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "npz"])
def test_truncated_at_every_kilobyte(folder, state, timms, capsys, suffix):
    content = whole(suffix, state, timms)
    (folder / f"whole.{suffix}").write_bytes(content)
    assert not any(outcomes(f"whole.{suffix}", capsys)[:1])
    step = 1024 if suffix != "pth" else 64 * 1024
    for length in [*range(0, len(content), step), len(content) - 1]:
        (folder / f"w.{suffix}").write_bytes(content[:length])
        assert all(outcomes(f"w.{suffix}", capsys)), length


def whole(suffix: str, state, timms) -> bytes:
    if suffix == "safetensors":
        return written(state, DESCRIPTION)
    if suffix == "npz":
        return pickle.dumps(to_haiku(network()), protocol=4)
    torch.save(timms, "whole.pth")
    with open("whole.pth", "rb") as file:
        return file.read()


@pytest.mark.scaled
@pytest.mark.parametrize("suffix", ["safetensors", "pth", "npz"])
def test_flipped_bits(folder, state, timms, suffix):
    """200 of them, half where the structure is and half anywhere: read with another number, or refused."""
    content, rng = whole(suffix, state, timms), np.random.default_rng(0)
    structure = 4096 if suffix != "pth" else 16_384
    count = 0
    read = dict(
        safetensors=lambda p: load_trained(str(p)),
        npz=lambda p: load_haiku(network(), p),
        pth=lambda p: load_timm(normfree.create_model("timm_test_nfnet", num_classes=10), p),
    )[suffix]
    for flip in range(share(200)):
        damaged = bytearray(content)
        place = rng.integers(min(structure, len(content)) if flip % 2 else len(content))
        damaged[-place if flip % 4 == 3 and suffix == "pth" else place] ^= 1 << rng.integers(8)
        (folder / f"w.{suffix}").write_bytes(damaged)
        count += refused(read, f"w.{suffix}")
    assert share(200) // 10 < count < share(200)


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "npz"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "nowhere", "device"])
def test_what_is_no_file(folder, capsys, suffix, kind):
    path = folder / f"w.{suffix}"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)  # opening it would wait for a writer
    elif kind == "loop":
        path.symlink_to(folder / "other")
        (folder / "other").symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    assert all(outcomes(path, capsys))


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "npz"])
def test_a_file_that_must_not_be_read(capsys, suffix):
    with public_folder() as public:
        path = public / f"w.{suffix}"
        path.touch(mode=0)
        with unprivileged():
            assert all(outcomes(path, capsys))


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_descriptions(folder, state, capsys, case):
    (folder / "w.safetensors").write_bytes(written(state, changed(*HOSTILE[case])))
    opened = outcomes("w.safetensors", capsys)
    assert opened[0]
    assert opened[1]
    for verb in (["predict", "w.safetensors", "a.png"], ["eval", "w.safetensors"], ["spp", "w.safetensors"]):
        capsys.readouterr()
        assert main(verb) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (folder / "canary").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "3",
        "[]",
        '"recipe"',
        "{}",
        "[" * 100_000,
        '{"recipe":' * 50_000,
        '{"recipe": ' + "9" * 10_000 + "}",
        "!!python/object/apply:os.mkdir [canary]",
    ],
    ids=lambda text: text[:20] or "empty",
)
def test_descriptions_that_are_none(folder, state, capsys, text):
    (folder / "w.safetensors").write_bytes(written(state, text))
    opened = outcomes("w.safetensors", capsys)
    assert opened[0]
    assert opened[1]
    assert not (folder / "canary").exists()


def test_a_deep_recipe(folder, state, capsys):
    value = json.loads("[" * 500 + "]" * 500)
    for path in ("recipe.model.options.widths", "recipe.data.mean", "recipe", "classes"):
        (folder / "w.safetensors").write_bytes(written(state, changed(path, value)))
        assert all(outcomes("w.safetensors", capsys)[:2])


@pytest.mark.parametrize("shape", [(HUGE, 0), (0, HUGE), (0,), (2**40, 0, 1), ()])
def test_a_classifier_of_nothing(folder, state, shape):
    """How many classes a file has is what its classifier holds, not what its shape says."""
    content = safetensors(
        dict(__metadata__=dict(normfree="{}"), **{"head.fc.weight": entry(shape, (0, 0 if 0 in shape else 4))}),
        b"" if 0 in shape else bytes(4),
    )
    (folder / "w.safetensors").write_bytes(content)
    assert refused(lambda p: initialize(network(), p), "w.safetensors")
    arrays = to_haiku(network())
    if 0 not in shape or max(shape) < 2**50:
        arrays["NF_ResNet/~/linear"]["w"] = np.zeros(shape, np.float32)
        (folder / "w.npz").write_bytes(pickle.dumps(arrays))
        assert refused(lambda p: initialize(network(), p), "w.npz")


def test_names_in_a_pickle(folder, capsys):
    for module, name in (("a\nb", "w"), ("a", "\x1b[2J"), ("a" * 10**6, "w")):
        (folder / "w.npz").write_bytes(pickle.dumps({module: {name: np.ones(2)}}))
        assert all(outcomes("w.npz", capsys))
