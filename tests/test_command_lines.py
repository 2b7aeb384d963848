"""benchmarks/command_lines.py: what counts as a difference between two answers, and what does not."""

import importlib
import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("command_lines")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("4 steps in 0.1 s (0.2 s with evaluations)", "4 steps in 12 s (13.5 s with evaluations)"),
        (' 0%| | 0/4\r50%| 2/4 [00:01<?, ?step/s]\r100% 4/4 [00:03<00:00]\n', "100% 4/4 [00:04<00:00]\n"),
        ('{"images_per_s": 1616.1276, "seconds_left": 0.1}', '{"images_per_s": 2e3, "seconds_left": 7}'),
        ("started 2026-11-29T20:26:39+00:00", "started 2027-01-02T03:04:05+00:00"),
        ("normfree 0.1.0", "normfree 0.2.0.dev1"),
        ("cannot read /one/in/x.png", "cannot read /two/in/x.png"),
        ('"recent": [[0.5, 2.0, 4, 0.0524], [0.4, 2, 4, 0.06]]', '"recent": [[0.5, 2.0, 4, 0.01], [0.4, 2, 4, 1.5]]'),
        ('"bytes": 866, "sha256": "' + "a1" * 32 + '"', '"bytes": 867, "sha256": "' + "b2" * 32 + '"'),
    ],
)  # fmt: skip
def test_no_difference(tool, one, other):
    places = {"/one": "FOLDER", "/two": "FOLDER"}
    assert tool.normalized(one, places) == tool.normalized(other, places)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("test accuracy 12.50%", "test accuracy 12.51%"),
        ("4 steps of 64 on cpu", "5 steps of 64 on cpu"),
        ('"loss": 2.3022637367248535', '"loss": 2.3022637367248536'),
        ('"recent": [[0.5, 2.0, 4, 0.0524]]', '"recent": [[0.5, 2.1, 4, 0.0524]]'),
        ("writes 3 files", "writes 3 file"),
        ("4 steps in 0.1 s", "4 steps in 0.1 min"),
    ],
)
def test_a_difference(tool, one, other):
    assert tool.normalized(one) != tool.normalized(other)


def test_files_are_compared_by_what_they_hold(tool):
    def png(level: int, **options) -> bytes:
        file = io.BytesIO()
        Image.fromarray(np.full((4, 4), level, np.uint8)).save(file, "PNG", **options)
        return file.getvalue()

    def weights(value: float, source: str) -> bytes:
        return save({"w": np.full(3, value, np.float32)}, {"source": source})

    def archive(*contents: bytes) -> bytes:
        with zipfile.ZipFile(file := io.BytesIO(), "w") as made:
            for i, content in enumerate(contents):
                made.writestr(zipfile.ZipInfo(f"{i}.png", (2000 + len(contents[0]) % 20, 1, 1, 0, 0, 0)), content)
        return file.getvalue()

    places = {"/one": "FOLDER", "/two": "FOLDER"}
    small, large = png(3), png(3, compress_level=0)
    assert small != large
    assert tool.described("x.png", small) == tool.described("x.png", large)
    assert tool.described("x.png", png(3)) != tool.described("x.png", png(4))
    one = tool.described("x.safetensors", weights(1, "/one/in"), places)
    assert one == tool.described("x.safetensors", weights(1, "/two/in"), places)
    assert one != tool.described("x.safetensors", weights(1, "/three/in"), places)
    assert one != tool.described("x.safetensors", weights(2, "/one/in"), places)
    assert tool.described("x.pt2", archive(small)) == tool.described("x.pt2", archive(large))
    assert tool.described("x.pt2", archive(small)) != tool.described("x.pt2", archive(png(9)))


def test_a_difference_names_its_part(tool):
    before = tool.Answer({"exit code": "0", "standard output": "one\ntwo\n", "a.csv": "1"})
    after = tool.Answer({"exit code": "0", "standard output": "one\nthree\n", "b.csv": "1"})
    told = "\n".join(before.difference(after, 30))
    for text in ("--- standard output", "-two", "+three", "a.csv: written before alone", "b.csv: written after alone"):
        assert text in told
    assert "exit code" not in told
    assert before.difference(before, 30) == []


def test_what_makes_the_inputs_runs_too(tool):
    text = "T = --quiet\n# made\ntrain $T --out runs/a\ntrain --out runs/ab\nconvert runs/a b.npz\neval b.npz\n"
    every = tool.lines(text)
    assert every["train $T --out runs/a"] == "train --quiet --out runs/a"
    run, asked = tool.chosen(every, ["eval"])
    assert run == ["train $T --out runs/a", "convert runs/a b.npz", "eval b.npz"]
    assert asked == {"eval b.npz"}
    assert tool.chosen(every, None)[0] == list(every)


def test_the_set_covers_every_verb(tool, capsys):
    from normfree.cli import main

    main(["--help"])
    verbs = set(re.findall(r"^  ([a-z][\w-]*)  ", capsys.readouterr().out, re.M))
    assert "train" in verbs
    every = tool.lines(tool.SET.read_text())
    assert {line.split()[0] for line in every} >= verbs
    assert {line.split()[0] for line in every if line.endswith("--help")} >= verbs
