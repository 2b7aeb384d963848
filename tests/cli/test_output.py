"""What is printed reaches every terminal and pipe: no character ends a verb, and JSON is UTF-8 everywhere."""

import io
import json
import os
import sys
from pathlib import Path

import image_files
import pytest
from tiny_runs import FLAGS

from normfree.cli import main

CLASSES = ("größe", "猫")
ENCODINGS = ("ascii", "cp1252", "utf-8")


@pytest.fixture(scope="module")
def named(tmp_path_factory) -> tuple[Path, Path]:
    """Images of two classes whose names few encodings have, and a run on them in a folder of such a name."""
    folder = tmp_path_factory.mktemp("named")
    root = image_files.folder(folder / "фото", CLASSES)
    assert main(["train", *flags(root), "--out", str(folder / "run-猫")]) == 0
    return root, folder / "run-猫"


def flags(root: Path) -> list[str]:
    return ["--recipe", "digits", "--data", f"imagefolder:{root}", *FLAGS, "--train.steps", "1"]


def piped(monkeypatch, encoding: str, *arguments) -> bytes:
    """What a verb writes to a pipe of that encoding; it must end well."""
    pipe = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", pipe)
    code = main([str(a) for a in arguments])
    pipe.flush()
    assert code == 0
    assert (pipe.encoding, pipe.errors) == (encoding, "strict")  # as it was, for whoever called
    return pipe.buffer.getvalue()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("verb", ["eval", "predict", "train"])
def test_no_character_ends_a_verb(monkeypatch, named, tmp_path, verb, encoding):
    root, run = named
    more = dict(eval=[run], predict=[run, root / "val"], train=[*flags(root), "--out", tmp_path / "猫"])
    told = piped(monkeypatch, encoding, verb, *more[verb]).decode(encoding)
    assert ("猫" if encoding == "utf-8" else r"\u732b") in told


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_json_is_utf8(monkeypatch, named, encoding):
    root, run = named
    told = piped(monkeypatch, encoding, "predict", run, root / "val", "--json").decode("utf-8")
    lines = [json.loads(line) for line in told.splitlines()]
    assert {one["name"] for line in lines for one in line["classes"]} == set(CLASSES)
    assert "猫" in told  # not as an escape


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="file names there are text")
def test_a_name_that_is_no_text(monkeypatch, named, tmp_path):
    root, run = named
    image = next((root / "val").rglob("*.png")).read_bytes()
    path = os.fsencode(tmp_path) + b"/\xff.png"
    with open(path, "wb") as file:
        file.write(image)
    told = piped(monkeypatch, "utf-8", "predict", run, tmp_path, "--json").decode("utf-8")
    assert os.fsencode(json.loads(told)["path"]) == path
    assert r"\udcff.png" in piped(monkeypatch, "ascii", "predict", run, tmp_path).decode("ascii")
