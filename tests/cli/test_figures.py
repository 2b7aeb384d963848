"""`normfree figures`: the gallery, and what it cannot draw."""

import csv
import re

import pytest
from PIL import Image

from normfree.spp.figures import FIGURES, NETWORKS

SMALL = ["--layers", "50", "--size", "64", "--quiet"]


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    from normfree.cli import main

    folder = tmp_path_factory.mktemp("figures") / "a" / "b"
    assert main(["figures", "10", "2", *SMALL, "--seed", "3", "--out", str(folder)]) == 0
    return folder


def test_files(gallery):
    tables = {f"{key}.csv" for key in ("bn_after", "nf_he", "nf", "fixup")}
    assert {path.name for path in gallery.iterdir()} == {"README.md", "figure2.png", "figure10.png"} | tables
    for name in ("figure2.png", "figure10.png"):
        with Image.open(gallery / name) as picture:
            picture.load()
            assert picture.width > 1000
    with (gallery / "nf.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["block"] for row in rows][:3] == ["stem", "stages.0.0", "stages.0.1"]
    assert len(rows) == 1 + 16


def test_the_page(gallery):
    written = (gallery / "README.md").read_text()
    assert f"\n```bash\nnormfree figures 10 2 --layers 50 --size 64 --quiet --seed 3 --out {gallery}\n```\n" in written
    assert max(map(len, written.splitlines())) <= max(120, len(str(gallery)) + 80)
    page = " ".join(written.split())  # whatever its lines are
    assert page.index("## Figure 2: ") < page.index("## Figure 10: ")
    for number in (2, 10):
        assert FIGURES[number].claim in page
        assert f"![Figure {number}](figure{number}.png)" in page
        for key in FIGURES[number].networks:
            assert f"[{NETWORKS[key].label}]({key}.csv)" in page
    assert "networks of 50 layers at initialization, 2 unit Gaussian inputs of 64 px, seed 3" in page
    assert "| variance within a stage, largest over smallest | 1 |" in page
    assert "*NF, He init*: mean shift: the squared channel mean is" in page
    assert "*NF, Scaled WS*: no fault." in page
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert links
    assert all((gallery / link).is_file() for link in links)


def test_what_it_says(normfree, tmp_path):
    result = normfree("figures", 10, *SMALL[:-1], "--out", tmp_path / "out")
    assert result.code == 0
    assert re.fullmatch(rf"1 figure in \d+ s; gallery {re.escape(str(tmp_path))}/out/README.md\n", result.out)
    assert "1/1" in result.err  # the bar


def test_numbers_are_of_the_seed(normfree, tmp_path):
    pages = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert normfree("figures", 10, 10, *SMALL, "--seed", seed, "--out", tmp_path / name).code == 0
        pages.append((tmp_path / name / "fixup.csv").read_text())
    assert pages[0] == pages[1] != pages[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["3"], "figure 3 is none of 1, 2, 6, 7, 8, 9, 10, 11"),
        (["-1"], "-1"),
        (["two"], "invalid int value: 'two'"),
        (["10", "--layers", "51"], "layers (=51) must be one of 50, 101, 152, 200, 288, 600"),
        (["10", "--layers", "0"], "layers (=0) must be one of"),
        (["10", "--size", "0"], "--size (=0) must be from 1 to 4096"),
        (["10", "--size", "1000000000"], "--size (=1000000000) must be from 1 to 4096"),
        (["10", "--seed", "9" * 30], "must be from -9223372036854775808 to 9223372036854775807"),
        (["10", "--batch", "-2"], "--batch (=-2) must be from 1 to 1024"),
        (["10", "--batch", "9" * 30], "must be from 1 to 1024"),
        (["1", *SMALL[:2], "--size", "32", "--batch", "1"], "a batch of 1 at 32 px is too small"),
    ],
)
def test_unusable_arguments(normfree, tmp_path, arguments, message):
    result = normfree("figures", *arguments, "--quiet", "--out", tmp_path / "out")
    assert result.code == 2
    assert message in result.error


def test_a_file_where_the_folder_should_be(normfree, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "inside"):
        result = normfree("figures", 10, *SMALL, "--out", out)
        assert result.code == 2
        assert str(out) in result.error


def test_a_folder_that_cannot_be_written_to(normfree, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)  # tests may run as one who can write everywhere
    result = normfree("figures", 10, *SMALL, "--out", tmp_path)
    assert result.code == 2
    assert result.error == f"--out {tmp_path} cannot be written to"
