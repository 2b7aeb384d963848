"""`normfree published`: published points, runs beside them, and what is no run."""

import pytest
from PIL import Image

from normfree import UsageError, model_info
from normfree.report.published import AXES, FIGURES, draw_published, published_figure
from normfree.runs import train
from normfree.runs.published import point_of

TINY = {
    "model.options.depths": [1, 1, 1],
    "model.options.widths": [16, 16, 32],
    "train.steps": 2,
    "train.batch_size": 8,
    "train.log_every": 1,
    "train.device": "cpu",
    "optim.ema_decay": None,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "mine"
    train("digits", TINY, out=folder, progress=False)
    return folder


@pytest.mark.parametrize("name", FIGURES)
def test_points_rise_along_a_line(name):
    figure = FIGURES[name]
    assert figure.axis in AXES
    for points in figure.lines.values():
        places = [point.x for point in points]
        assert places == sorted(set(places))
        assert all(70 < point.top1 < 90 for point in points)


def test_multiply_adds_of_the_released_networks_are_ours():
    for point in published_figure("nfnets_4").lines["NFNet"]:
        assert model_info(f"nfnet_{point.label.lower()}").macs / 1e9 == pytest.approx(point.x, abs=0.006)


def test_a_run_is_a_point(run):
    point = point_of(run, "macs")
    assert point.label == "mine"
    assert 0 <= point.top1 <= 100
    assert 0 < point.x < 0.01  # a few hundred thousand multiply-adds
    assert point_of(run, "latency").x > 0
    (axes,) = draw_published(published_figure("nfnets_4"), [point]).axes
    assert [line.get_label() for line in axes.lines][-1] == "own runs"
    assert axes.lines[-1].get_xydata().tolist() == [[point.x, point.top1]]


def test_the_command(normfree, run, tmp_path):
    out = tmp_path / "figure.png"
    result = normfree("published", "nf_resnets_3", run, "--out", out)
    assert (result.code, result.err) == (0, "")
    assert result.out == (f"NF-ResNets, figure 3 (points of table 3): 31 published points, 1 run; picture {out}\n")
    with Image.open(out) as picture:
        assert picture.width > 500


def test_what_is_refused(normfree, run, tmp_path):
    with pytest.raises(UsageError, match="'nfnets_2' is unknown; did you mean nfnets_"):
        published_figure("nfnets_2")
    result = normfree("published", "nfnets_1", tmp_path)
    assert result.code == 2
    assert result.err.count("\n") == 1
