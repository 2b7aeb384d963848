"""The way in and the ways out: verbs, help, exit codes, one line per error."""

import importlib
import subprocess
import sys

import pytest

from normfree import RunFailed, UsageError, __version__
from normfree.cli.main import VERBS, main


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_overview_names_every_verb(normfree, arguments):
    result = normfree(*arguments)
    assert (result.code, result.err) == (0, "")
    for verb, text in VERBS.items():
        assert f"  {verb} " in result.out
        assert text in result.out


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(normfree, flag):
    result = normfree(flag)
    assert (result.code, result.out, result.err) == (0, f"normfree {__version__}\n", "")


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"usage: normfree {verb} ")
    assert "--traceback" in out
    assert err == ""


def test_help_of_train_explains_every_field(capsys):
    from normfree.recipes import field_paths

    with pytest.raises(SystemExit):
        main(["train", "--help"])
    out = capsys.readouterr().out
    assert all(f"  --{path}  (" in out for path in field_paths())
    assert max(map(len, out.splitlines())) <= 120


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "command 'trian' is unknown; did you mean train?"),
        (["modls"], "command 'modls' is unknown; did you mean models?"),
        (["qqq"], "command 'qqq' is unknown; see normfree --help"),
        (["--quiet"], "command '--quiet' is unknown"),
        (["eval"], "the following arguments are required: RUN; see normfree eval --help"),
        (["predict", "run"], "the following arguments are required: IMAGE; see normfree predict --help"),
        (["models", "--patern", "x"], "unrecognized arguments: --patern"),
        (["recipes", "a", "b"], "unrecognized arguments: b; see normfree recipes --help"),
        (["eval", "run", "--batch-size", "x"], "argument --batch-size: invalid int value: 'x'"),
        (["eval", "run", "--batch-size", "0"], "--batch-size (=0) must be at least 1"),
        (["eval", "run", "--workers", "-1"], "--workers (=-1) at least 0"),
        (["eval", "run", "--workers", "1000000"], "--workers (=1000000) at least 0 and at most 1024"),
        (["eval", "run", "--size", "1000000"], "--size (=1000000) must be at least 1 and at most 4096"),
        (["recipes", "a\nb"], "recipe 'a\\nb' is unknown"),
        (["eval", "a\nb"], "a\\nb does not exist"),
        (["train", "--recipe", "a\0.yaml"], "recipe file 'a\\x00.yaml' cannot be read: embedded null byte"),
        (["train", "--optim.lr", "[" * 1000], "optim.lr (='[[["),
        (["train", "--data.image_size", "100000"], "data.image_size (=100000) must be at most 4096"),
        (["eval", "run", "--checkpoint", "first"], "invalid choice: 'first'"),
        (["predict", "run", "a.png", "--top", "0"], "--top (=0) must be at least 1"),
        (["train", "digts"], "'digts' does not exist; normfree train takes a folder of images"),
        (["train", "--optim.lrr", "1"], "option --optim.lrr is unknown; did you mean --optim.lr"),
        (["train", "--momentum", "1"], "option --momentum is unknown; did you mean --optim.momentum?"),
        (["train", "--qqq", "1"], "option --qqq is unknown; see normfree train --help"),
        (["train", "--optim.lr"], "option --optim.lr needs a value"),
        (["train", "--optim.lr", "--quiet"], "option --optim.lr needs a value"),
        (["train", "--recipe"], "argument --recipe: expected one argument"),
        (["train", "--recipe", "digts"], "recipe 'digts' is unknown; did you mean digits"),
        (["train", "--model", "nfnet_f9"], "model 'nfnet_f9' is unknown; did you mean nfnet_f"),
        (["train", "--optim.lr", "fast"], "optim.lr (='fast') must be a number"),
        (["train", "--optim.lr="], "optim.lr (="),
        (["train", "--optim.lr", "null"], "optim.lr (="),
        (["train", "--optim.lr", "2020-13-45"], "optim.lr (='2020-13-45') must be a number"),
        (
            ["train", "--model.options.deths", "[1]"],
            "option 'deths' is unknown for nf_resnet26_small; did you mean depths",
        ),
        (["train", "--model.options", "{1: 2}"], "model.options"),
        (["train", "--model.options.num_classes", "3"], "num_classes"),
        (["train", "--model.options.drop_rate", "0.1"], "drop_rate"),
        (["train", "--model.options.alpha", "x"], "alpha"),
        (["train", "--model.options.gamma", "x"], "gamma"),
        (["train", "--model.options.widths", "3"], "widths"),
        (["train", "--model.options.depths", "[1,x,1]"], "depths"),
        (["train", "--train.device", "gpu"], "device (='gpu') is not available"),
        (["train", "--data", "digit"], "data.source (='digit') is unknown"),
        (["train", "--data", "imagefolder:/nowhere"], "/nowhere is not a folder"),
        (["train", "--data.source", "nowhere"], "data.source (='nowhere') is unknown"),
        (["models", "qqq*"], "no model matches 'qqq*'"),
        (["recipes", "nfnet_f00"], "recipe 'nfnet_f00' is unknown; did you mean nfnet_f0"),
        (["eval", "/nowhere"], "/nowhere does not exist; give a run folder, a file of weights or a model's name"),
        (["predict", "/nowhere", "a.png"], "/nowhere does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_unusable_input_is_one_line_and_exit_code_2(normfree, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    result = normfree(*arguments)
    assert result.code == 2, result.err
    assert said in result.error
    assert result.out == ""
    assert list(tmp_path.iterdir()) == []  # nothing is written before all of the input is good


ENDS = [
    (UsageError("no"), 2, "no"),
    (RunFailed("stopped"), 1, "stopped"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (KeyboardInterrupt("stopped at step 3"), 130, "stopped at step 3"),
    (OSError(28, "No space left on device", "runs/a"), 1, "runs/a: No space left on device"),
    (MemoryError(), 1, "memory is too small; lower the batch, --train.micro_batch or the size of images"),
    (ZeroDivisionError("one\ntwo"), 1, "unexpected ZeroDivisionError: one two (--traceback shows where)"),
]


@pytest.mark.parametrize("flags", [[], ["--traceback"]])
@pytest.mark.parametrize(("error", "code", "said"), ENDS)
def test_how_a_verb_ends(normfree, monkeypatch, error, code, said, flags):
    def fail(argv):
        raise error

    monkeypatch.setattr(importlib.import_module("normfree.cli.models"), "run", fail)
    result = normfree("models", *flags)
    assert result.code == code
    assert result.err.splitlines()[-1] == f"normfree: {said}"
    assert ("Traceback (most recent call last)" in result.err) == bool(flags)
    if not flags:
        assert result.error == said


def test_traceback_where_an_error_comes_from(normfree):
    result = normfree("train", "--optim.lr", "fast", "--traceback")
    assert result.code == 2
    assert "Traceback (most recent call last)" in result.err
    assert result.err.splitlines()[-1] == "normfree: optim.lr (='fast') must be a number"


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "normfree", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"normfree {__version__}\n")
