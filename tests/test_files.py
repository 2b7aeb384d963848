"""A pipe is never read, wherever the name of a file may come from; what is written leaves pipes and links as such."""

import os
import signal
import socket
from pathlib import Path

import coco_files
import image_files
import numpy as np
import pair_files
import pytest

from normfree import RunFailed, UsageError
from normfree.cli import main
from normfree.data import UnreadableImage, decode_image
from normfree.data.coco import coco
from normfree.data.coco_ids import CocoIds
from normfree.data.decode import raw_values
from normfree.data.exif import header
from normfree.data.held_out import file_hash
from normfree.data.masks import MaskValues
from normfree.data.pairs import read_depth
from normfree.data.shards import find_shards
from normfree.data.sources import csv_paths
from normfree.data.tables import read_table
from normfree.files import append_line, regular, whole_file
from normfree.recipes import load_recipe
from normfree.report.run_files import read_run
from normfree.runs.started import read_started
from normfree.spp import read_film
from normfree.training import damage, read_weights


@pytest.fixture(autouse=True)
def never_waits():
    """A pipe that is opened all the same fails the test instead of holding up all of them."""

    def opened(number, frame):
        raise AssertionError("it waits for the other end of a pipe")

    before = signal.signal(signal.SIGALRM, opened)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def test_what_may_be_opened(tmp_path):
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "link").symlink_to(file)
    for path in (file, tmp_path / "link", tmp_path / "nothing", tmp_path / "nothing" / "deeper", Path("a\0b")):
        assert regular(path) is path
        assert regular(str(path)) == str(path)
    (tmp_path / "to_pipe").symlink_to(pipe(tmp_path / "pipe"))
    with socket.socket(socket.AF_UNIX) as listening:
        folder = os.open(tmp_path, os.O_RDONLY)
        listening.bind(f"/proc/self/fd/{folder}/socket")  # the name of a socket must be short
        os.close(folder)
        for name, told in (
            ("pipe", "a pipe, not a file"),
            ("to_pipe", "a pipe, not a file"),
            ("socket", "a socket, not a file"),
            ("/dev/zero", "a device, not a file"),
            (".", "a folder, not a file"),
        ):
            with pytest.raises(OSError, match=told) as caught:
                regular(tmp_path / name)
            assert (caught.value.strerror, caught.value.filename) == (told, str(tmp_path / name))


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (decode_image, "a.png"),
        (raw_values, "a.npy"),
        (MaskValues(3).read, "mask.png"),
        (MaskValues(3).read, "mask.mat"),
        (read_depth, "depth.png"),
        (read_depth, "depth.npy"),
        (read_table, "labels.csv"),
        (lambda path: CocoIds.read(path, ["cat"]), "ids.json"),
        (load_recipe, "recipe.yaml"),
        (read_film, "spp.jsonl"),
        (read_weights, "w.safetensors"),
    ],
)
def test_a_pipe_is_named(tmp_path, read, name):
    path = str(pipe(tmp_path / name))
    with pytest.raises((UsageError, UnreadableImage), match=r"a pipe, not a file") as caught:
        read(path)
    assert path in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_what_reads_a_file_for_a_remark_does_without(tmp_path):
    path = pipe(tmp_path / "a.png")
    assert header(str(path)) == ((0, 0), 1)
    assert len(file_hash(str(path))) == 64
    assert read_started(pipe(tmp_path / "started.json").parent) == {}
    assert damage(pipe(tmp_path / "manifest.json").parent) == "manifest.json: a pipe, not a file"


def test_lists_of_files(tmp_path):
    """Rows of a table, images of COCO, shards, masks."""
    (tmp_path / "labels.csv").write_text("file,class\na.png,cat\n")
    pipe(tmp_path / "a.png")
    with pytest.raises(UsageError, match=r"no such image in .*: 'a\.png' \(line 2\)"):
        read_table(tmp_path / "labels.csv")
    with pytest.raises(UsageError, match="no file "):
        csv_paths(str(tmp_path / "a.png"))
    with pytest.raises(UsageError, match="does not exist"):
        find_shards(str(pipe(tmp_path / "a.tar")))
    root = coco_files.coco_folder(tmp_path / "coco")
    pipe(root / "train" / "2.png")
    with pytest.raises(UsageError, match=r"2\.png is missing; .*train\.json names it"):
        coco(str(root))
    root = pair_files.masks_folder(tmp_path / "masks")
    pipe(root / "train" / "masks" / "2.png")
    assert main(["train", "--data", str(root), "--out", str(tmp_path / "run")]) == 2


def test_run_folders(tmp_path):
    (tmp_path / "recipe.yaml").touch()
    for name in ("metrics.jsonl", "clipping.jsonl", "environment.json"):
        pipe(tmp_path / name)
    notes = read_run(tmp_path).notes
    assert [note for note in notes if "a pipe, not a file" in note] == [
        f"{name} cannot be read: a pipe, not a file" for name in ("metrics.jsonl", "clipping.jsonl", "environment.json")
    ]


def test_a_pipe_is_not_appended_to(tmp_path):
    with pytest.raises(RunFailed, match=r"cannot write .*metrics\.jsonl: a pipe, not a file"):
        append_line(pipe(tmp_path / "metrics.jsonl"), {})


def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    path = pipe(tmp_path / "out")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with whole_file(path) as part:
            part.write_bytes(b"page")
        assert os.read(reader, 10) == b"page"
    finally:
        os.close(reader)
    assert path.is_fifo()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_one(tmp_path, there):
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "file", tmp_path / "link"
    if there:
        target.write_text("before")
    link.symlink_to(Path("far") / "file")
    with whole_file(link) as part:
        part.write_text("after")
    assert link.is_symlink()
    assert target.read_text() == "after"
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "far", target, link]


def test_a_folder_is_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunFailed, match=r"cannot write .*folder: it is a folder"), whole_file(tmp_path / "folder"):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--recipe", "PIPE.yaml"],
        ["train", "--data", "csv:PIPE.csv"],
        ["train", "--data", "PIPE.csv"],
        ["train", "--data", "wds:PIPE.tar,PIPE.tar"],
        ["train", "--data", "nyu:PIPE.mat", "--recipe", "demo_depth"],
        ["train", "--resume", "PIPE"],
        ["train", "--data", "FOLDER", "--model", "nf_resnet26_small", "--init", "PIPE.safetensors"],
        ["eval", "PIPE.safetensors"],
        ["eval", "PIPE.onnx"],
        ["predict", "PIPE.pt2", "a.png"],
        ["augment", "FOLDER", "--recipe", "PIPE.yaml"],
        ["convert", "PIPE.npz", "a.safetensors", "--to", "normfree"],
    ],
    ids=" ".join,
)
def test_every_verb_refuses_a_pipe(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    image_files.folder(tmp_path / "FOLDER")
    for name in arguments:
        for part in name.removeprefix("csv:").removeprefix("wds:").removeprefix("nyu:").split(","):
            if part.startswith("PIPE"):
                pipe(tmp_path / part)
    assert main(arguments) == 2
    assert "PIPE" in capsys.readouterr().err


def test_an_image_that_becomes_a_pipe_is_unreadable(tmp_path):
    """After the walk that listed it."""
    path = tmp_path / "a.npy"
    np.save(path, image_files.pixels())
    decode_image(path)
    with pytest.raises(UnreadableImage, match=r"a\.npy: a pipe, not a file"):
        decode_image(pipe(path))
