"""Text from files reaches no terminal raw: escapes, line breaks, turned text, wherever a verb prints it."""

import csv
import json
import logging
import os
import sys
import unicodedata
import warnings
from pathlib import Path

import image_files
import numpy as np
import pytest
import shard_files
import torch
from coco_files import coco_folder
from pair_files import voc_folder
from small_models import small
from tiny_runs import FLAGS

from normfree.cli import main
from normfree.cli.streams import printable_notes
from normfree.data import open_source
from normfree.export import Preprocessing, to_archive, to_onnx

pytestmark = pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="file names there are text")
# a terminal's screen, its title, a line of its own, the other direction, the eight-bit form of escape, no UTF-8
HOSTILE = (
    "a\x1b[2Jb",
    "\x1b]0;owned\x07",
    "ok\nnormfree: all is well",
    "c\u202egpj",
    "d\x9b31m",
    "e\udcff",
    "f\u2028",
)


def raw(text: str) -> set[str]:
    """Characters that a terminal would act on, but for the ends of lines, and of the bar."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - set("\n\r")


def check(result, code: int | None = 0) -> None:
    """Neither stream has such characters, and no text of a file has become a line."""
    if code is not None:
        assert result.code == code, result.err
    for stream in (result.out, result.err):
        assert not raw(stream), raw(stream)
        assert not [line for line in stream.splitlines() if line.startswith("normfree: all is well")]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> tuple[Path, Path]:
    """A folder whose classes, images and own name hold such texts, and a run on it with unreadable images."""
    folder = tmp_path_factory.mktemp("hostile")
    root = image_files.folder(folder / HOSTILE[0], HOSTILE, train=3, val=2)
    for name in HOSTILE[:2]:
        image_files.break_file(root / "train" / name / f"{HOSTILE[2]}.png")
        image_files.break_file(root / "val" / name / f"{HOSTILE[2]}.png")
    (root / "train" / HOSTILE[2] / "x.ex\x1b[2J\n").write_text("")
    (root / "train" / f"{HOSTILE[1]}.png").write_text("")
    assert main(["train", *flags(root), "--out", str(folder / HOSTILE[4])]) == 0
    return root, folder / HOSTILE[4]


def flags(root: Path) -> list[str]:
    return ["--recipe", "digits", "--data", f"imagefolder:{root}", *FLAGS, "--train.steps", "1"]


def test_train(normfree, hostile, tmp_path):
    result = normfree("train", *flags(hostile[0]), "--out", tmp_path / HOSTILE[2])
    check(result)
    assert "skipped unreadable image" in result.err
    assert r"a\x1b[2Jb" in result.err
    check(normfree("train", *flags(hostile[0]), "--out", tmp_path / HOSTILE[2]), 2)
    check(normfree("train", "--resume", tmp_path / HOSTILE[2], "--train.steps", 2))
    check(normfree("train", *flags(hostile[0]), "--data.max_unreadable", 1, "--out", tmp_path / "few"), 1)


@pytest.mark.parametrize("verb", ["eval", "predict", "report", "export", "spp", "convert"])
def test_a_run(normfree, hostile, tmp_path, monkeypatch, verb):
    root, run = hostile
    monkeypatch.chdir(tmp_path)
    more = dict(
        eval=["--csv", HOSTILE[2]],
        predict=[root / "val", "--csv", HOSTILE[1]],
        report=["--out", HOSTILE[2]],
        export=["--out", f"{HOSTILE[0]}.pt2"],
        spp=["--out", HOSTILE[1]],
        convert=[f"{HOSTILE[0]}.safetensors", "--to", "timm"],
    )
    check(normfree(verb, run, *more[verb]), None if verb == "convert" else 1 if verb == "predict" else 0)


@pytest.mark.parametrize("verb", ["eval", "predict"])
def test_json_is_json(normfree, hostile, verb):
    root, run = hostile
    result = normfree(verb, run, "--json", *([root / "val"] if verb == "predict" else []))
    check(result, None)
    lines = [json.loads(line) for line in result.out.splitlines()]
    names = {row["name"] for line in lines for row in line["classes"]}
    assert names <= set(HOSTILE)
    if verb == "predict":
        assert {os.path.dirname(line["path"]) for line in lines} == {str(root / "val" / name) for name in HOSTILE}
    else:
        assert names == set(HOSTILE)


@pytest.mark.parametrize("write", [to_onnx, to_archive], ids=["onnx", "pt2"])
def test_an_exported_file(normfree, tmp_path, write):
    names = [*HOSTILE, *"hij"]
    model, path = small("nf_resnet50"), tmp_path / f"{HOSTILE[0]}.{'onnx' if write is to_onnx else 'pt2'}"
    write(model, path, preprocessing=Preprocessing.of(model, 32), classes=names, name=HOSTILE[1])
    photo = image_files.write(tmp_path / f"{HOSTILE[2]}.png")
    result = normfree("predict", path, photo, tmp_path / "photos", "--top", 10)
    check(result, 2)
    result = normfree("predict", path, photo, "--top", 10)
    check(result)
    assert len(result.out.splitlines()) == 11


@pytest.mark.parametrize("source", ["csv", "coco", "masks", "wds"])
def test_other_sources(normfree, tmp_path, source):
    """What they refuse, with what is in the file."""
    if source == "csv":
        image_files.write(tmp_path / "0.png")
        with open(tmp_path / "labels.csv", "w", newline="") as file:
            csv.writer(file).writerows([["file", HOSTILE[0]], [f"{HOSTILE[2]}.png", HOSTILE[1]]])
    elif source == "coco":
        content = json.loads((coco_folder(tmp_path) / "train.json").read_text())
        content["annotations"][0]["bbox"] = HOSTILE[2]
        (tmp_path / "train.json").write_text(json.dumps(content))
    elif source == "masks":
        (tmp_path / "train" / "images").mkdir(parents=True)
        (tmp_path / "train" / "masks").mkdir()
        np.save(tmp_path / "train" / "images" / f"{HOSTILE[1]}.npy", np.zeros((3, 3)))
    else:
        (tmp_path / f"train{HOSTILE[2]}.tar").write_bytes(b"no")
        (tmp_path / "val.tar").write_bytes(b"no")
    paths = dict(csv=tmp_path / "labels.csv", wds=tmp_path)
    result = normfree("train", "--data", f"{source}:{paths.get(source, tmp_path)}", "--out", tmp_path / "run")
    check(result, 2)
    assert len(result.err.splitlines()) == 1


def test_weights_and_recipes(normfree, tmp_path):
    torch.save({HOSTILE[0]: torch.zeros(3), HOSTILE[2]: {HOSTILE[1]: torch.zeros(2)}}, tmp_path / "a.pth")
    check(normfree("eval", tmp_path / "a.pth", "--data", f"imagefolder:{tmp_path}"), 2)
    (tmp_path / "a.yaml").write_text('model:\n  "na\\x1b[2Jme": "x\\n"\n# \x9b31m\n')
    check(normfree("train", "--recipe", tmp_path / "a.yaml"), 2)
    (tmp_path / "b.yaml").write_text("# \x1b[2J\u202e\ntrain: {}\n")
    check(normfree("recipes", tmp_path / "b.yaml"))


def test_warnings_and_log_lines_of_libraries(capsys):
    with printable_notes():
        said = warnings.formatwarning(UserWarning(f"odd: {HOSTILE[0]}{HOSTILE[2]}"), UserWarning, "x.py", 1, "source")
        message = HOSTILE[2] + HOSTILE[0]
        logging.lastResort.handle(logging.LogRecord("a.b", logging.WARNING, "x.py", 1, "file %s", (message,), None))
    assert r"odd: a\x1b[2Jbok\nnormfree" in said
    assert capsys.readouterr().err == "file ok\\nnormfree: all is wella\\x1b[2Jb\n"


LONG = "x" * 5000


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", LONG],
        ["eval", "RUN", "--data", f"imagefolder:{LONG}"],
        ["eval", "RUN", "--data", LONG],
        ["predict", LONG, "0.png"],
        ["predict", "RUN", f"{LONG}.png"],
        ["predict", f"{LONG}.onnx", "0.png"],
        ["predict", f"{LONG}.pt2", "0.png"],
        ["predict", "RUN", "0.png", "--csv", LONG],
        ["report", LONG],
        ["report", "RUN", "--out", f"{LONG}/x"],
        ["export", LONG],
        ["export", "RUN", "--out", f"{LONG}.pt2"],
        ["convert", f"{LONG}.safetensors", "a.npz"],
        ["convert", "RUN", f"{LONG}.npz"],
        ["spp", LONG],
        ["spp", "RUN", "--data", LONG],
        ["augment", LONG],
        ["train", "--recipe", f"{LONG}.yaml"],
        ["train", "--recipe", LONG],
        ["train", "--out", LONG],
        ["train", "--resume", LONG],
        ["train", "--init", f"{LONG}.safetensors"],
        *(["train", "--data", f"{kind}:{LONG}"] for kind in ("imagefolder", "csv", "wds", "masks", "voc", "coco")),
        *(["train", "--data", f"{kind}:{LONG}"] for kind in ("depth", "nyu")),
        ["recipes", f"{LONG}.yaml"],
    ],
    ids=lambda arguments: " ".join(arguments).replace(LONG, "LONG"),
)
def test_names_that_are_too_long(normfree, hostile, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    image_files.write(tmp_path / "0.png")
    result = normfree(*(str(hostile[1]) if one == "RUN" else one for one in arguments))
    check(result, 2)
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("name", ["\udcff\udcfe", "a\udcffb"])
def test_names_that_are_no_text(normfree, tmp_path, monkeypatch, name):
    """Whole ways through: a recipe, a run, images and files with names that are no UTF-8."""
    monkeypatch.chdir(tmp_path)
    root = image_files.folder(tmp_path / name, (name, "b"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    result = normfree("train", *flags(root), "--out", name)
    check(result, 2)
    assert "is no name in UTF-8" in result.err
    check(normfree("train", *flags(root), "--out", "run"))
    check(normfree("eval", "run", "--json"))
    check(normfree("predict", "run", root, "--csv", name + ".csv", "--json"))
    check(normfree("report", "run"))
    for ending in (".pt2", ".onnx"):
        check(normfree("export", "run", "--out", f"file{ending}"))
        result = normfree("export", "run", "--out", name + ending)
        check(result, 2)
        assert "is no name in UTF-8" in result.err
        os.rename(f"file{ending}", name + ending)
        check(normfree("predict", name + ending, root / "val"), 2)
    shard_files.folder(root / "shards")
    assert len(open_source(f"wds:{root / 'shards'}").train) == 12
    check(normfree("spp", "run", "--out", name))
    check(normfree("train", "--resume", "run", "--train.steps", 2))
    with open(tmp_path / name / "labels.csv", "wb") as file:
        file.write(b"file,class\n\xff.png,a\n")
    result = normfree("train", "--data", f"csv:{root / 'labels.csv'}")
    check(result, 2)
    assert "must be CSV in UTF-8" in result.err


@pytest.mark.parametrize("name", [LONG, "a\0b", "\ud800", "../" * 2000], ids=["long", "zero", "surrogate", "deep"])
@pytest.mark.parametrize("source", ["csv", "coco", "voc", "recipe"])
def test_names_in_files_that_no_file_can_have(normfree, tmp_path, source, name):
    data = f"{source}:{tmp_path}"
    if source == "csv":
        (tmp_path / "labels.csv").write_text(f"file,class\n{name},a\n", errors="surrogatepass")
        data = f"csv:{tmp_path / 'labels.csv'}"
    elif source == "coco":
        content = json.loads((coco_folder(tmp_path) / "train.json").read_text())
        content["images"][0]["file_name"] = name
        (tmp_path / "train.json").write_text(json.dumps(content))
    elif source == "voc":
        lists = voc_folder(tmp_path) / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
        (lists / "train.txt").write_text(name, errors="surrogatepass")
    arguments = ["--data", data]
    if source == "recipe":
        (tmp_path / "a.yaml").write_text(json.dumps(dict(data=dict(source=f"imagefolder:{name}"))))
        arguments = ["--recipe", tmp_path / "a.yaml"]
    result = normfree("train", *arguments, "--out", tmp_path / "run")
    check(result, 2)
    assert len(result.err.splitlines()) == 1
    assert len(result.err) < 12_000
    assert not (tmp_path / "run").exists()
