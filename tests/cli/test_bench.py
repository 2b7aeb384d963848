"""`normfree bench`: what it prints, and what it refuses."""

import re

import pytest

from normfree import RunFailed
from normfree.bench import Point, Samples, scaling, tables
from normfree.bench.tables import Measured

TINY = ["--batch", "2", "--size", "32", "--rounds", "1", "--device", "cpu"]


def test_step(normfree):
    result = normfree("bench", "step", "nf_resnet26_small", "bn_resnet50_v1", *TINY)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0].startswith("batch 2, 32 px, float32, channels last; ")
    assert [line.split("|")[1].strip() for line in lines[4:]] == ["nf_resnet26_small", "bn_resnet50_v1"]
    for line in lines[4:]:
        assert re.fullmatch(r"\| \w+ \| \d+ \| \d+ to \d+ \| [\d.]+ \| [\d.]+ \| [\d.]+ \|", line)


def test_somebody_who_watches_sees_what_is_at_work(normfree, monkeypatch):
    quiet = normfree("bench", "step", "nf_resnet26_small", *TINY)
    assert quiet.err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert "nf_resnet26_small ...\n" in normfree("bench", "step", "nf_resnet26_small", *TINY).err


def test_a_network_that_cannot_train_on_one_image(normfree):
    result = normfree("bench", "step", "bn_resnet50_v1", "--batch", "1", "--size", "32", "--device", "cpu")
    assert result.code == 1
    assert result.err.startswith("normfree: bn_resnet50_v1 cannot train on batch 1 of 32 px: ")


def test_tables(normfree):
    result = normfree("bench", "tables", "4", *TINY, "--contiguous", "--precision", "bfloat16", "--batch", "2", "3")
    assert result.code == 0, result.err
    assert result.out.startswith("batch 2, 3, bfloat16, contiguous; ")
    assert "median of 1 step of each network" in result.out
    assert "NF-ResNets, table 4" in result.out
    assert "NFNets, table" not in result.out
    for batch in (2, 3):  # the paper has neither: its smallest batch stands beside
        assert re.search(
            rf"\| nf_resnet50 \| {batch} \| 32 \| [\d.]+ \| [\d.]+ to [\d.]+ \| bn_resnet50 \| [\d.]+ \| [\d.]+ "
            r"\| 17\.3 / 16\.42 \(V100, batch 16\) \| 0\.95 \(V100\) \|",
            result.out,
        )


def lines_of(normfree, monkeypatch, measured, *arguments):
    """The rows that are printed of what is not measured here."""
    monkeypatch.setattr(tables, "measure", lambda row, **settings: measured)
    result = normfree("bench", "tables", *arguments, "--device", "cpu")
    assert result.code == 0, result.err
    return [line for line in result.out.splitlines() if line.startswith("| nf")]


def test_tables_say_where_memory_was_short(normfree, monkeypatch):
    measured = Measured(Samples((0.2, 0.1, 0.4)), 8), Measured(None, None)
    (line,) = lines_of(normfree, monkeypatch, measured, "3", "--batch", "32")
    assert line == (
        "| nfnet_f0 (micro-batch 8) | 32 | 192, 224 | 200 | 100 to 400 | resnet50 | out of memory | out of memory "
        "| 73.3 / 41.6 (TPUv3, batch 32), 56.7 / 35.3 (V100, batch 32) | 1.76 (TPUv3), 1.61 (V100) |"
    )


def test_tables_count_steps_per_second_as_the_paper(normfree, monkeypatch):
    measured = Measured(Samples((0.2, 0.1, 0.4)), None), Measured(Samples((0.25,)), None)
    lines = lines_of(normfree, monkeypatch, measured, "4", "--batch", "32", "64", "--rows", "4")
    assert len(lines) == 8
    measured = "| 224 | 5 | 2.5 to 10 | bn_resnet200 | 4 | 0.80 |"
    assert lines[6] == f"| nf_resnet200 | 32 {measured} 3.26 / 2.61 (V100, batch 32) | 0.80 (V100) |"
    assert lines[7] == f"| nf_resnet200 | 64 {measured} out of memory / out of memory (V100, batch 64) |  |"


def test_tables_count_rounds_as_steps(normfree, monkeypatch):
    """The option's former name."""
    seen = []
    monkeypatch.setattr(tables, "measure", lambda row, *, steps, **_: seen.append(steps) or [Measured(None, None)] * 2)
    for options in ([], ["--rounds", "7"], ["--steps", "5000"]):
        assert normfree("bench", "tables", "4", "--device", "cpu", *options).code == 0
    assert seen == [3, 7, 5000]


def test_scaling(normfree, tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "BATCHES", (1, 2))
    out = tmp_path / "a" / "b"
    result = normfree("bench", "scaling", "batch", "--model", "nf_resnet26_small", "--out", out, *TINY)
    assert result.code == 0, result.err
    assert {path.name for path in out.iterdir()} == {"scaling.png", "scaling.csv"}
    assert re.search(r"\nbatch: -?[\d.]+ ms \+ -?[\d.]+ ms per G multiply-adds, no point farther than \d+%", result.out)


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt("interrupted"), 130), (RunFailed("too large"), 1)])
@pytest.mark.parametrize("count", [1, 2])
def test_what_was_measured_is_kept(normfree, tmp_path, monkeypatch, error, code, count):
    def measure(series, grid, **settings):
        for name, batch, size in grid[:count]:
            yield Point(series, name, batch, size, 10, batch * 10**9, 0.1 * batch, 10**8 * batch, 2 * 10**8)
        raise error

    monkeypatch.setattr(scaling, "measure", measure)
    out = tmp_path / "out"
    result = normfree("bench", "scaling", "batch", "--out", out, *TINY)
    assert result.code == code
    assert result.err.splitlines() == [
        f"normfree: stopped; what was measured is in {out / 'scaling.png'} and scaling.csv",
        f"normfree: {error}",
    ]
    assert len((out / "scaling.csv").read_text().splitlines()) == 1 + count
    assert (out / "scaling.png").stat().st_size > 10_000


def test_nothing_measured_leaves_nothing(normfree, tmp_path, monkeypatch):
    def measure(series, grid, **settings):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(scaling, "measure", measure)
    result = normfree("bench", "scaling", "--out", tmp_path, *TINY)
    assert (result.code, result.error) == (130, "interrupted")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", ["trained", "torchvision.models:resnet18", "nf_resnet9"])
def test_scaling_takes_models_by_name(normfree, tmp_path, trained, model):
    result = normfree(
        "bench", "scaling", "--model", trained if model == "trained" else model, "--out", tmp_path / "out"
    )
    assert (result.code, result.out) == (2, "")
    assert result.error.startswith(f"--model: model '{trained if model == 'trained' else model}' is unknown; ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "WHAT"),
        (["stop"], "'stop'"),
        (["step"], "network"),
        (["step", "nfnet_f9"], "nfnet_f9"),
        (["step", "nfnet_f0", "--batch", "0"], "--batch (=0) must be at least 1"),
        (["step", "nfnet_f0", "--size", "-3"], "--size (=-3)"),
        (["step", "nfnet_f0", "--device", "abacus"], "abacus"),
        (["step", "nfnet_f0", "--precision", "float8"], "float8"),
        (["tables", "7"], "table 7 is not one of 3, 4, 5, 6"),
        (["tables", "--rows", "0"], "--rows (=0) must be at least 1"),
        (["tables", "--batch", "16", "0"], "--batch (=0) must be at least 1"),
        (["tables", "--steps", "0"], "--steps (=0) must be at least 1"),
        (["step", "nfnet_f0", "--precision", "float16"], "float16"),
        (["scaling", "width"], "series 'width' is not one of batch, size, depth"),
        (["scaling", "--model", "x"], "'x'"),
        (["scaling", "--rounds", "0"], "--rounds (=0)"),
        (["scaling", "--out", "/dev/null/x"], "/dev/null/x"),
    ],
)
def test_refusals(normfree, arguments, text):
    result = normfree("bench", *arguments)
    assert result.code == 2
    assert text in result.err
    assert result.err.count("\n") == 1
    assert result.out == ""


@pytest.mark.parametrize("arguments", [[], ["step"], ["tables"], ["scaling"]])
def test_help(normfree, arguments, capsys):
    with pytest.raises(SystemExit, match="0"):
        normfree("bench", *arguments, "--help")
    assert "usage: normfree bench" in capsys.readouterr().out
