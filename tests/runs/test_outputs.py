"""A file of a run, or one that is read, is not written over."""

import os
import shutil
from argparse import Namespace

import image_files
import pytest

from normfree import UsageError
from normfree.runs.outputs import check_output
from normfree.runs.predict import Answers, _check_outputs


@pytest.fixture
def run(tmp_path):
    """A folder like a run's, with an earlier page and table."""
    names = ["recipe.yaml", "metrics.jsonl", "started.json", "environment.json", "held_out.json", "report.html"]
    names += ["table.csv", "checkpoints/step-1/state.json", "checkpoints/step-1/x.csv"]
    for name in names:
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("recipe.yaml", ".html"),
        ("metrics.jsonl", ".csv"),
        ("started.json", ".json"),
        ("environment.json", ".json"),
        ("held_out.json", ".json"),
        ("report.html", ".csv"),
        ("checkpoints/step-1/state.json", ".csv"),
        ("checkpoints/step-1/x.csv", ".csv"),
    ],
)
@pytest.mark.parametrize("linked", [True, False])
def test_a_file_of_a_run(run, tmp_path, name, ending, linked):
    path = run / name
    if linked:
        path = tmp_path / f"link{ending}"
        path.symlink_to(run / name)
    with pytest.raises(UsageError, match=f"^--out {path} is a file of the run in {run}; name another one$"):
        check_output("--out", path, (ending,))


def test_what_may_be_written(run, tmp_path):
    (tmp_path / "notes.txt").touch()
    os.mkfifo(run / "pipe")
    (tmp_path / "checkpoints").mkdir()  # of no run: no recipe is beside it
    (tmp_path / "checkpoints" / "x.csv").touch()
    for place in ("table.csv", "report.html", "new.csv", "pipe", "../notes.txt", "../checkpoints/x.csv"):
        check_output("--out", run / place, (".csv", ".html"), [run, run / "recipe.yaml", "nf_resnet50"])


@pytest.mark.parametrize("text", ["{}", "csv:{}", "csv:other.csv,{}"])
def test_an_input(tmp_path, text):
    table, other = tmp_path / "table.csv", tmp_path / "hard.csv"
    table.touch()
    os.link(table, other)
    for path in (table, other):
        with pytest.raises(UsageError, match=f"^--csv {path} is a file that is read here; name another one$"):
            check_output("--csv", path, (".csv",), ["nf_resnet50", text.format(table)])


def test_verbs(normfree, trained, tmp_path):
    run, image = tmp_path / "run", tmp_path / "a.png"
    shutil.copytree(trained, run, symlinks=True)
    image_files.write(image, image_files.pixels(8, 8))
    weights = run / "checkpoints" / "last" / "weights.safetensors"
    before = {path: path.read_bytes() for path in [*run.rglob("*"), image] if path.is_file()}
    svg = tmp_path / "a.svg"  # which is the run's recipe
    svg.symlink_to(run / "metrics.jsonl")
    for arguments in (
        ["report", run, "--out", run / "recipe.yaml"],
        ["eval", run, "--csv", run / "metrics.jsonl"],
        ["eval", weights, "--csv", weights],
        ["predict", run, image, "--csv", image],
        ["predict", run, image, "--csv", run / "recipe.yaml"],
        ["augment", image, "--out", image],
        ["spp", run, "--out", svg],
        ["spp", run, "--data", tmp_path, "--out", image],
    ):
        result = normfree(*arguments)
        assert (result.code, result.out) == (2, ""), arguments
        assert "; name another one" in result.error
        assert {path: path.read_bytes() for path in before} == before


def test_folders_of_answers(tmp_path):
    image = tmp_path / "a.png"
    image.touch()
    given = dict(network="x", csv=None, boxes=None, annotations=None, masks=None, depths=None, out=None)
    for flag in ("masks", "depths"):
        with pytest.raises(UsageError, match=f"^--{flag} {tmp_path}: {image} is an image that is read here"):
            _check_outputs(Answers(), Namespace(**given | {flag: str(tmp_path)}), {image: "a"})
        _check_outputs(Answers(), Namespace(**given | {flag: str(tmp_path / "masks")}), {image: "a"})
