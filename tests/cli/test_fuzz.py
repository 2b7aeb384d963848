"""Whatever stands on the command line: done, or one line and exit code 2; never a traceback."""

import re
from typing import Any

import image_files
import pytest
import yaml
from hostile_values import FIELDS, HOSTILE, fuzz, misspelt, of_field, of_type
from hypothesis import given
from hypothesis import strategies as st

from normfree.cli import main
from normfree.cli.main import VERBS
from normfree.training import Summary, Trainer

MODELS = ["nf_resnet26_small", "nf_resnet26_smal", "nfnet_f9", "", "[1]"]
SOURCES = ["digits", "digit", "imagefolder:nowhere", "imagefolder:photos", "wds:photos", "wds:{0..", "synthetic:20"]
SOURCES += ["synthetic:0", "synthetic:x", ":", ""]
RECIPES = ["digits", "nf_regnet_b0", "digts", "nowhere.yaml", "photos", "photos/train/cat/0.png", "a b", "."]
WEIGHTS = ["nowhere", "photos", "photos/train/cat/0.png", "x.npz", "pretrained:no_such_model", "pretrained:", ""]
TOKENS = ["-", "--", "---", "-x", "--é", "=", "--=", "--=1", "-1", "1e400", "*", "a\nb", "\x1b[2J", "digits", "-h=3"]
JUNK = st.sampled_from(TOKENS) | st.text(max_size=9).filter(lambda text: text not in ("-h", "--help", "--traceback"))
# names that would fetch published weights, or take minutes, are left out
ARGUMENTS = [
    "photos",
    "nowhere",
    "photos/val/dog/0.png",
    "bad.png",
    "x.safetensors",
    "x.npz",
    "x.onnx",
    "x.pt2",
    "os:x",
]
ARGUMENTS += [
    "nowhere:factory",
    "json:loads",
    "math:pi",
    "json:loads('[')",
    "json:loads(x)",
    "a:b(",
    "taken",
    "0",
    "-3",
]
FLAGS = {
    "eval": ["--data", "--checkpoint", "--weights", "--size", "--batch-size", "--workers", "--device"],
    "predict": ["--top", "--checkpoint", "--device", "--antialias", "--json"],
    "export": ["--format", "--out", "--size", "--checkpoint", "--batch", "--precision", "--opset", "--random"],
    "convert": [
        "--to",
        "--model",
        "--checkpoint",
        "--weights",
        "--verify",
        "--overwrite",
        "--quiet",
        "--model.options",
    ],
    "convert-model": ["--mode", "--option", "--leave", "--freeze", "--size", "--batch", "--alpha", "--out", "--table"],
    "spp": [
        "--option",
        "--size",
        "--batch",
        "--seed",
        "--data",
        "--blocks",
        "--checkpoint",
        "--out",
        "--format",
        "--scale",
    ],
    "augment": [
        "--recipe",
        "--layers",
        "--magnitude",
        "--cutout",
        "--size",
        "--count",
        "--seed",
        "--ops",
        "--out",
        "--sane",
    ],
    "models": ["--json"],
    "recipes": ["--json"],
}
VALUES = [
    "1",
    "2",
    "0",
    "-1",
    "3.5",
    "nan",
    "inf",
    "1e99",
    "9" * 30,
    "x",
    "",
    "last",
    "best",
    "raw",
    "png",
    "auto",
    "cpu",
]
VALUES += ["cuda:99", "meta", "onnx", "timm", "alpha=1", "alpha", "dynamic", "float32", "photos", "nowhere/x.png", "16"]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder with images and nothing trained; `fit` ends at once."""
    monkeypatch.chdir(tmp_path)
    image_files.folder(tmp_path / "photos")
    image_files.break_file(tmp_path / "bad.png")
    (tmp_path / "taken").mkdir()
    monkeypatch.setattr(Trainer, "fit", lambda self: Summary({}, {}, 0, 0.0, 0.0, [], stopped=True))


def well_ended(capsys, arguments: list[str], codes: tuple[int, ...] = (0, 2)) -> int:
    """The exit code, after a look at what was said."""
    capsys.readouterr()
    code = main(arguments)
    said = capsys.readouterr()
    last = said.err.splitlines()[-1] if said.err else ""
    assert code in codes, (arguments, code, last)
    assert "Traceback" not in said.err + said.out
    assert not re.search(r"unexpected \w*(Error|Warning|Exception)", said.err), said.err
    lines = [line for line in said.err.split("\n") if line and not line.startswith("skipped unreadable image ")]
    if code == 2:
        assert lines == [last], arguments
        assert last.startswith("normfree: "), (arguments, said.err)
        assert len(last) < 2000
        assert last.isprintable()
    return code


@st.composite
def fields(draw, wrong: float) -> list[str]:
    """``--FIELD VALUE`` or ``--FIELD=VALUE``, some of the values hostile."""
    path = draw(st.sampled_from([*FIELDS, "model.options.depths", "model.options.alpha", "model.options.activation"]))
    if path in ("data.workers", "train.device"):
        return [f"--{path}", draw(st.sampled_from(["0", "-1", "x", "cpu"]))]
    plausible = of_field(path) if path in FIELDS else of_type(dict[str, Any])
    value = draw(HOSTILE if draw(st.integers(0, 99)) < 100 * wrong else plausible)
    try:
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()
    except (yaml.YAMLError, RecursionError, ValueError):
        text = draw(st.sampled_from(["[" * 400, "é\n: ["]))
    return [f"--{path}={text}"] if text.startswith("--") or draw(st.booleans()) else [f"--{path}", text]


@st.composite
def of_train(draw, wrong: float) -> list[str]:
    arguments = ["train", "--quiet", "--train.device", "cpu"]
    for flag, choices in (("--model", MODELS), ("--data", SOURCES), ("--recipe", RECIPES), ("--init", WEIGHTS)):
        if draw(st.integers(0, 9)) == 0:
            arguments += [flag, draw(st.sampled_from(choices))]
    for given_field in draw(st.lists(fields(wrong), min_size=1, max_size=3)):
        arguments += given_field
    if draw(st.integers(0, 9)) == 0:
        arguments += draw(st.lists(JUNK, max_size=2))
    return arguments


@pytest.mark.scaled
@pytest.mark.parametrize(("cases", "wrong"), [(100, 0.05), (200, 0.5)])
def test_train(capsys, cases, wrong):
    codes = []

    @fuzz(cases)
    @given(arguments=of_train(wrong))
    def check(arguments):
        codes.append(well_ended(capsys, arguments))

    check()
    assert set(codes) == {0, 2}


@pytest.mark.scaled
@fuzz(150)
@given(data=st.data(), path=st.sampled_from(list(FIELDS)), value=st.sampled_from([[], ["1"], ["--quiet"]]))
def test_a_wrong_letter_in_an_option(capsys, data, path, value):
    wrong = data.draw(misspelt(path))
    if wrong not in FIELDS and not wrong.startswith("model.options."):
        assert well_ended(capsys, ["train", f"--{wrong}", *value], (2,)) == 2


@pytest.mark.scaled
@fuzz(100)
@given(
    flag=st.sampled_from(["--recipe", "--data", "--model", "--out", "--init", "--spp-every", "--resume"]), value=JUNK
)
def test_hostile_values_of_the_flags_of_train(capsys, flag, value):
    sources = ["--data", "imagefolder:nowhere"] if flag != "--data" else []
    well_ended(capsys, ["train", *sources, flag, "digit" if value == "digits" else value], (2,))


@pytest.mark.scaled
@pytest.mark.parametrize("verb", FLAGS)
def test_other_verbs(capsys, verb):
    """50 cases each: junk, flags without values, values of other types."""
    codes = (0, 1, 2) if verb in ("predict", "augment") else (0, 2)
    pieces = st.sampled_from(ARGUMENTS) | JUNK.filter(lambda text: "*" not in text)  # counting all networks takes long

    @fuzz(50)
    @given(
        given=st.lists(pieces, min_size=verb == "models", max_size=3),
        options=st.lists(st.tuples(st.sampled_from(FLAGS[verb]), st.sampled_from(VALUES) | JUNK), max_size=3),
        cut=st.booleans(),
    )
    def check(given, options, cut):
        arguments = [verb, *given, *(part for option in options for part in option)]
        well_ended(capsys, arguments[: -1 if cut and options else None], codes)

    check()


@pytest.mark.scaled
@fuzz(100)
@given(
    arguments=st.lists(JUNK | st.sampled_from([verb for verb in VERBS if verb not in ("models", "train")]), max_size=3)
)
def test_junk(capsys, arguments):
    """Two verbs may stand side by side; `figures` alone would draw for minutes, and `models` count all."""
    well_ended(capsys, [*arguments, "--no-such-option"] if arguments else arguments)
