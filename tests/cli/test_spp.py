"""`normfree spp`: files, table, diagnosis, and one line for everything that cannot be used."""

import csv
import json
import shutil
import sys

import image_files
import pytest
import torch

from normfree.cli import main
from normfree.data import decode_image, digits
from normfree.runs import signals
from normfree.runs.load import load_trained
from normfree.spp import record

SHAPE = ["--option", "depths=[1,2]", "--option", "widths=[16,32]", "--option", "stem=3x3"]
SMALL = [*SHAPE, "--size", "16", "--batch", "2", "--device", "cpu"]
QUICK = ["--size", "16", "--batch", "2", "--device", "cpu"]

MODULE = """
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock


class Net(nn.Sequential):
    def __init__(self, width=8, depth=3, name="x"):
        super().__init__(nn.Conv2d(3, width, 3), *[BasicBlock(width, width) for _ in range(depth)])


class Made:
    make = staticmethod(Net)


ready = Net()
number, nothing = 3, lambda: None


def straight():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())


def fails():
    raise RuntimeError("no\\nluck")


def leaves():
    raise SystemExit(0)


def picky():
    class Picky(Net):
        def forward(self, x):
            assert x.shape[-1] == 224, "only 224 px"
    return Picky()
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder to work in, with a module of one's own."""
    (tmp_path / "my_spp_nets.py").write_text(MODULE)
    (tmp_path / "my_spp_broken.py").write_text("def f(:\n")
    (tmp_path / "my_spp_raising.py").write_text("raise ValueError('at import')\n")
    (tmp_path / "my_spp_exiting.py").write_text("raise SystemExit(0)\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("my_spp_")]:
        del sys.modules[name]


def rows(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_files_of_one_network(normfree, mine, suffix):
    result = normfree("spp", "nf_resnet50", *SMALL, "--format", suffix)
    assert result.code == 0, result.err
    (picture,) = mine.glob(f"spp-nf_resnet50*.{suffix}")
    table = picture.with_suffix(".csv")
    assert f"picture {picture.name}\ntable   {table.name}\n" in result.out
    start = picture.read_bytes()[:5]
    assert start.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])
    assert [row["block"] for row in rows(table)] == ["stem", "stages.0.0", "stages.1.0", "stages.1.1"]
    assert "no fault found" in result.out
    assert "judged by the rules for untrained networks; --rules trained for a trained one" in result.out
    assert "every branch adds nothing yet" in result.out
    assert result.err == ""


def test_a_file_name_for_a_prefix(normfree, mine):
    assert normfree("spp", "my_spp_nets:ready", *QUICK, "--out", "seen.png").code == 0
    assert sorted(path.name for path in mine.glob("seen*")) == ["seen.csv", "seen.png"]


def test_columns_are_the_pictures_panels(normfree, mine, monkeypatch):
    figures = []

    def plot(*recorded, draw=signals.plot, **options):
        figures.append(draw(*recorded, **options))
        return figures[-1]

    monkeypatch.setattr(signals, "plot", plot)
    for options in ([], ["--columns", "avg_var, cosine"]):
        assert normfree("spp", "my_spp_nets:ready", *QUICK, *options).code == 0
    titles = [[axes.get_title() for axes in figure.axes] for figure in figures]
    assert [len(some) for some in titles] == [3, 2]
    assert titles[1] == ["average channel variance", "mean cosine between examples"]


def test_gradients(normfree, mine):
    result = normfree("spp", "my_spp_nets:ready", *QUICK, "--backward", "--table", "--out", "seen")
    assert result.code == 0, result.err
    assert "gradient var." in result.out
    assert all(float(row["grad_var"]) > 0 for row in rows(mine / "seen.csv"))
    refused = normfree("spp", "my_spp_nets:ready", *QUICK, "--columns", "avg_var,grad_norm")
    assert refused.code == 2
    assert refused.err.strip().endswith("--columns grad_norm: gradients are recorded with --backward only")


def test_widths(normfree, mine):
    result = normfree("spp", "my_spp_nets:Net", *QUICK, "--widths", "width=8,32", "--option", "depth=2")
    assert result.code == 0, result.err
    assert "width 8    width 32   slope" in result.out
    assert "no block depends on the width" in result.out
    assert not list(mine.glob("spp-*"))
    refused = normfree("spp", "my_spp_nets:Net", *QUICK, "--widths", "width=8")
    assert refused.code == 2
    assert "--widths width=8 must look like KEY=N,N,.., for example width=16,64,256" in refused.err


def test_a_folder_is_where_the_files_go(normfree, mine):
    (mine / "seen").mkdir()
    assert normfree("spp", "my_spp_nets:ready", *QUICK, "--out", "seen").code == 0
    assert sorted(path.name for path in (mine / "seen").iterdir()) == ["spp-ready.csv", "spp-ready.png"]
    assert sorted(path.name for path in mine.glob("s*")) == ["seen"]


def test_the_format_is_what_out_ends_in(normfree, mine):
    assert normfree("spp", "my_spp_nets:ready", *QUICK, "--out", "seen.svg").code == 0
    assert sorted(path.name for path in mine.glob("seen*")) == ["seen.csv", "seen.svg"]
    result = normfree("spp", "my_spp_nets:ready", *QUICK, "--out", "seen.svg", "--format", "pdf")
    assert (result.code, result.error) == (2, "--out seen.svg must end in .pdf for --format pdf")


def test_faulty_networks_are_at_hand_everywhere(normfree, mine):
    """As the README calls them."""
    result = normfree("spp", "normfree.spp.broken:dead_branch", "--size", 64, "--device", "cpu")
    assert result.code == 0, result.err
    assert "! dead branch: the branch of layer3.2 varies by" in result.out


def test_the_right_rules_are_chosen_and_named(normfree, trained, mine):
    result = normfree("spp", trained, "--device", "cpu")
    assert result.code == 0, result.err
    assert "shown 32 test images\n" in result.out
    assert "  no fault found\n  judged by the rules for trained networks; nothing to compare with: " in result.out
    result = normfree("spp", trained, "--device", "cpu", "--rules", "untrained", "--noise")
    assert "shown unit Gaussian noise\n" in result.out
    assert "judged by the rules for untrained networks" in result.out
    result = normfree("spp", "my_spp_nets:ready", *QUICK, "--rules", "trained")
    assert "judged by the rules for trained networks; nothing to compare with\n" in result.out


def test_a_run_is_compared_with_its_own_first_record(normfree, trained, mine):
    shutil.copytree(trained, mine / "died", symlinks=True)
    network = load_trained(str(trained))
    images = torch.stack([network.transform(digits(1).test.image(i)) for i in range(32)])
    first = record(network.model, images)
    for row in first.rows:
        row.avg_var *= 1e5
    first.rows[0].avg_var *= 10
    line = dict(step=0, spp=first.to_dict(), spectra=[])
    (mine / "died" / "spp.jsonl").write_text(json.dumps(line) + '\n{"step": 5, "sp')  # cut off by a kill
    result = normfree("spp", "died", "--device", "cpu")
    assert result.code == 0, result.err
    assert "  ! drift: the variance at stages.0.0 fell 1e+06-fold since step 0, from " in result.out
    assert "judged by the rules for trained networks, and spp.jsonl at step 0\n" in result.out
    result = normfree("spp", "died", "--device", "cpu", "--noise")
    assert "  no fault found\n" in result.out
    assert "nothing to compare with: spp.jsonl is of other inputs or blocks" in result.out


def test_hints_name_this_commands_options(normfree, mine):
    result = normfree("spp", "my_spp_nets:straight", *QUICK)
    assert "name its blocks, for example --blocks '" in result.error
    result = normfree("spp", "my_spp_nets:ready", *QUICK, "--blocks", "x.*")
    assert "--blocks (='x.*') matches no module" in result.error
    result = normfree("spp", "my_spp_nets:ready", "--size", 3, "--batch", 1, "--device", "cpu")
    assert "give larger inputs (--size) or more of them (--batch-size), or --running-stats" in result.error


def test_what_is_no_run_is_said_so(normfree, mine):
    result = normfree("spp", "runs/absent")
    assert (result.code, "runs/absent does not exist" in result.err) == (2, True)
    result = normfree("spp", "nf_resnet50", "--checkpoint", "best")
    assert (result.code, "--checkpoint" in result.err) == (2, True)


def test_the_table_is_the_recording(normfree, mine):
    assert normfree("spp", "my_spp_nets:ready", *QUICK, "--seed", 5, "--out", "a").code == 0
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    spp = record(sys.modules["my_spp_nets"].ready, noise)
    assert [row["block"] for row in rows("a.csv")] == ["stem", "1", "2", "3"]
    assert [float(row["avg_var"]) for row in rows("a.csv")[1:]] == spp.avg_var


def test_several_networks_and_the_table(normfree, mine):
    result = normfree("spp", "my_spp_nets:Net", "nf_resnet26_small", *QUICK, "--table", "--out", "both")
    assert result.code == 0, result.err
    assert [row["network"] for row in rows("both.csv")] == ["Net"] * 4 + ["nf_resnet26_small"] * 9
    assert "\nblock  squared mean   variance  branch var.  expected   cosine\n" in result.out
    assert "\nblock       squared mean   variance" in result.out  # as wide as stages.0.0
    assert "Net: 3 residual blocks in 1 stage\n" in result.out


def test_networks_of_one_name_are_told_apart(normfree, mine):
    texts = ["my_spp_nets:Net", "my_spp_nets:Net", "my_spp_nets:Made.make"]
    assert normfree("spp", *texts, *QUICK, "--out", "x").code == 0
    names = list(dict.fromkeys(row["network"] for row in rows("x.csv")))
    assert names == ["my_spp_nets:Net #1", "my_spp_nets:Net #2", "Made.make"]


@pytest.mark.parametrize(
    ("function", "options", "called"),
    [
        ("Net", ["width=4", "name='a \"b\", $c$'"], 'Net (width=4, name=a "b", $c$)'),
        ("Net", ["width=4"], "Net (width=4)"),
        ("Made.make", ["width=4"], "Made.make (width=4)"),
        ("ready", [], "ready"),
    ],
)
def test_names_with_odd_characters(normfree, mine, function, options, called):
    options = [word for option in options for word in ("--option", option)]
    result = normfree("spp", f"my_spp_nets:{function}", *QUICK, "--spectra", *options)
    assert result.code == 0, result.err
    (picture,) = mine.glob("spp-*.png")
    assert set(picture.stem) <= set("abcdefghijklmnopqrstuvwxyzMN0123456789._-")
    for name in (picture.with_suffix(".csv"), f"{picture.stem}-spectra.csv"):
        assert {row["network"] for row in rows(name)} == {called}


def test_spectra(normfree, mine):
    result = normfree("spp", "my_spp_nets:Net", *QUICK, "--spectra", "--out", "x")
    found = rows("x-spectra.csv")
    assert [row["layer"] for row in found] == ["0", *[f"{i}.conv{j}" for i in (1, 2, 3) for j in (1, 2)]]
    assert found[1]["shape"] == "8x72"
    assert float(found[1]["condition"]) == pytest.approx(float(found[1]["largest"]) / float(found[1]["smallest"]))
    assert "Net: worst conditioned of 7 layers" in result.out
    assert result.out.endswith("spectra x-spectra.csv\n")


def test_faults_are_told(normfree, mine):
    result = normfree("spp", "nf_resnet50", *SMALL, "--option", "gamma=1.414", "--option", "skip_gain=1", "--out", "x")
    assert "  ! attenuation: branches lose variance in every block" in result.out
    assert "no fault found" not in result.out
    assert "gamma=1.414, skip_gain=1): 3 residual blocks" in result.out


@pytest.mark.parametrize(("value", "read"), [("1e-1", 0.1), ("0.1", 0.1), ("1", 1)])
def test_options_are_numbers(normfree, mine, value, read):
    result = normfree("spp", "nf_resnet50", *SMALL, "--option", f"alpha={value}", "--out", "x")
    assert result.code == 0
    assert f"alpha={read}" in result.out


def test_images(normfree, mine):
    for i in range(3):
        image_files.write(mine / "photos" / f"{i}.png", image_files.pixels(30, 40, seed=i))
    assert normfree("spp", "my_spp_nets:ready", *QUICK, "--data", "photos", "--out", "images").code == 0
    assert normfree("spp", "my_spp_nets:ready", *QUICK, "--out", "noise").code == 0
    assert rows("images.csv") != rows("noise.csv")
    assert len(rows("images.csv")) == 4


def test_a_run_is_shown_images_as_it_is_evaluated_on_them(normfree, trained, mine):
    image_files.write(mine / "photos" / "0.png", image_files.pixels(8, 8), "L")
    result = normfree("spp", trained, "--data", "photos", "--device", "cpu", "--out", "x")
    assert result.code == 0, result.err
    assert result.out.startswith("run: 3 residual blocks")
    network = load_trained(str(trained))
    image = network.transform(decode_image(mine / "photos" / "0.png", 1))
    assert image.shape == (1, 8, 8)
    spp = record(network.model, image[None])
    got = [float(row["avg_var"]) for row in rows("x.csv")[1:]]
    assert got == pytest.approx(spp.avg_var, rel=1e-6)


def test_checkpoints_of_a_run(normfree, trained, mine):
    for which in ("last", "best"):
        assert normfree("spp", trained, "--checkpoint", which, "--device", "cpu", "--out", which).code == 0
    file = trained / "checkpoints" / "last" / "ema.safetensors"
    assert normfree("spp", file, "--device", "cpu", "--out", "file").code == 0
    assert [r["avg_var"] for r in rows("file.csv")] == [r["avg_var"] for r in rows("last.csv")]


def test_blocks_and_batch_statistics(normfree, mine):
    assert normfree("spp", "my_spp_nets:straight", *QUICK, "--blocks", "*", "--out", "x").code == 0
    assert [row["block"] for row in rows("x.csv") if row["block"] != "stem"] == ["0", "1"]
    for name, flags in (("batch", []), ("running", ["--running-stats"])):
        assert normfree("spp", "my_spp_nets:ready", *QUICK, *flags, "--out", name).code == 0
    assert rows("batch.csv") != rows("running.csv")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nf_resnet51"], "model 'nf_resnet51' is unknown; did you mean nf_resnet50"),
        (["no_such_module_of_mine:f"], "module 'no_such_module_of_mine' cannot be imported"),
        ([":f"], "must look like"),
        ([".x:f"], "must look like"),
        (["my_spp_broken:f"], "SyntaxError"),
        (["my_spp_raising:f"], "ValueError: at import"),
        (["my_spp_exiting:f"], "SystemExit"),
        (["my_spp_nets:"], "must look like"),
        (["my_spp_nets:f("], "must look like"),
        (["my_spp_nets:Net(open('x'))"], "must look like"),
        (["my_spp_nets:Net(**{})"], "must look like"),
        (["my_spp_nets:absent"], "my_spp_nets has no 'absent'"),
        (["my_spp_nets:Net.absent"], "my_spp_nets has no 'Net.absent'"),
        (["my_spp_nets:fails"], "my_spp_nets:fails failed: RuntimeError: no luck"),
        (["my_spp_nets:leaves"], "my_spp_nets:leaves failed: SystemExit"),
        (["my_spp_nets:Net()"], "must look like"),
        (["my_spp_nets:Net", "--option", "deep=1"], "failed: TypeError"),
        (["my_spp_nets:number"], "failed: TypeError"),
        (["my_spp_nets:nothing"], "gave a NoneType; it must be or return a torch.nn.Module"),
        (["my_spp_nets:picky"], "picky fails on inputs of shape (4, 3, 64, 64): AssertionError: only 224 px"),
        (["my_spp_nets:straight"], "no residual block was found in Sequential"),
        (["my_spp_nets:Net", "--blocks", "stages.*"], "matches no module of Net"),
        (["my_spp_nets:ready", "--option", "width=4"], "--option is for models by name and for functions; my_spp_nets"),
        (["my_spp_nets:Net", "--size", "0"], "--size (=0) must be at least 1"),
        (["my_spp_nets:Net", "--size", "-3"], "--size (=-3) must be at least 1"),
        (["my_spp_nets:Net", "--batch", "0"], "--batch (=0) must be at least 1"),
        (["my_spp_nets:Net", "--batch", "many"], "invalid int value: 'many'"),
        (["my_spp_nets:Net", "--batch", "9" * 15], "inputs of shape (999999999999999, 3, 64, 64) cannot be made"),
        (["my_spp_nets:Net", "--batch", "9" * 40], "cannot be made"),
        (["my_spp_nets:Net", "--seed", "9" * 40], "--seed"),
        (["my_spp_nets:Net", "--device", "abacus"], "device (='abacus') is not available"),
        (["my_spp_nets:Net", "--format", "gif"], "invalid choice: 'gif'"),
        (["my_spp_nets:Net", "--columns", "avg_var,gate"], "--columns: 'gate' must be one of avg_sq_mean, avg_var, "),
        (["my_spp_nets:Net", "--columns", "cosine,cosine"], "--columns (=['cosine', 'cosine']) must be different ones"),
        (["my_spp_nets:Net", "--data", "nowhere"], "nowhere does not exist"),
        (["my_spp_nets:Net", "--data", "empty"], "empty holds no image"),
        (["my_spp_nets:Net", "--data", "broken"], "--data: broken/bad.png: "),
        (["my_spp_nets:Net", "--out", "nowhere/x"], "--out nowhere/x: folder nowhere does not exist"),
        (["my_spp_nets:Net", "--out", "nowhere/"], "--out nowhere/ must be the beginning of file names"),
        (["my_spp_nets:Net", "--out", "taken"], "cannot write taken.png: Is a directory"),
        (["my_spp_nets:Net", "--out", "x" * 300], "File name too long"),
        (["empty"], "empty is no run folder; a run folder is what `normfree train` printed at its end"),
        (["my_spp_nets.py"], "my_spp_nets.py"),
        (["nf_resnet50", "--checkpoint", "first"], "invalid choice: 'first'"),
        (["nf_resnet50", "--option", "alpha"], "--option alpha must look like KEY=VALUE"),
        (["nf_resnet50", "--option", "alpha=[1"], "the value is not YAML"),
        (["nf_resnet50", "--option", "alpha=2020-13-45"], "the value is not YAML"),
        (["nf_resnet50", "--option", "alhpa=1"], "did you mean alpha"),
        (["nf_resnet50", "--option", "alpha=much"], "option alpha (='much') must be a number"),
        (["nf_resnet50", "--option", "depths=3"], "option depths (=3) must be a list of integers"),
        (["nf_resnet50", "--option", "name=x"], "does not build nf_resnet50"),
        (["nf_resnet50", "--option", "in_chans=4", "--data", "photos"], "3 channels; 4 are needed"),
        ([], "the following arguments are required: NETWORK"),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else "",
)
def test_what_cannot_be_used(normfree, mine, arguments, message):
    (mine / "empty").mkdir()
    (mine / "taken.png").mkdir()
    image_files.break_file(mine / "broken" / "bad.png")
    image_files.write(mine / "photos" / "0.png")
    before = sorted(path.name for path in mine.iterdir() if path.name != "__pycache__")
    result = normfree("spp", *([] if "--size" in arguments else ["--size", "64"]), *arguments)
    assert result.code == 2, result.err
    assert message in result.error
    assert sorted(path.name for path in mine.iterdir() if path.name != "__pycache__") == before  # and nothing written


@pytest.mark.parametrize(
    "text",
    [
        "my_spp_touching:open('touched','w')",
        "my_spp_touching:f('touched')",
        "my_spp_touching:f()",
        "my_spp_touching:f.__class__[0]",
        "my_spp_touching:f or f",
        "my_spp_touching:f:f",
        "my_spp_touching:f\n",
        "my_spp_touching:(f)",
        "my_spp_touching:f;f",
        "my_spp_touching:1",
        "my_spp_touching..x:f",
        "my_spp_touching :f",
        "my_spp_touching,my_spp_nets:f",
    ],
)
@pytest.mark.parametrize("verb", [["spp"], ["bench", "step"]], ids=["spp", "bench"])
def test_nothing_is_imported_for_what_is_no_name(normfree, mine, verb, text):
    """A module that would leave a file wherever it is imported, and a function that would leave another."""
    (mine / "my_spp_touching.py").write_text("open('imported', 'w')\ndef f(*x):\n    open('called', 'w')\n")
    before = sorted(path.name for path in mine.iterdir())
    result = normfree(*verb, text)
    assert result.code == 2
    assert "must look like pkg.module:factory, names alone" in result.error
    assert sorted(path.name for path in mine.iterdir()) == before
    assert "my_spp_touching" not in sys.modules


def test_it_says_that_it_runs_code(capsys):
    with pytest.raises(SystemExit):
        main(["spp", "--help"])
    assert "it runs code, and looks for modules in the\ncurrent folder first" in capsys.readouterr().out


def test_the_working_folder_is_no_part_of_the_path_afterwards(normfree, mine):
    before = list(sys.path)
    normfree("spp", "my_spp_nets:ready", *QUICK)
    assert sys.path == before
