"""The line through the points, what a point counts, and the picture."""

import csv

import pytest

from normfree import create_model
from normfree.bench import Point, scaling
from normfree.models.complexity import count_macs


def test_fit_of_a_line():
    macs = [1e9, 2e9, 5e9, 4e10]
    line = scaling.fit(macs, [0.02 + 3e-12 * x for x in macs])
    assert line.constant == pytest.approx(0.02)
    assert line.slope == pytest.approx(3e-12)
    assert line.worst < 1e-9
    assert line.at(1e10) == pytest.approx(0.05)


def test_distance_from_the_line():
    """Three points with relative residuals that cannot be made smaller: 1, 1.2, 1 around a constant."""
    line = scaling.fit([1.0, 2.0, 3.0], [1.0, 1.2, 1.0])
    assert line.slope == pytest.approx(0, abs=1e-9)
    assert line.worst == pytest.approx(1.2 / line.constant - 1)


def test_grids_vary_one_thing():
    assert scaling.grid("batch", "x", 4, 64) == [("x", n, 64) for n in scaling.BATCHES]
    assert scaling.grid("size", "x", 4, 64) == [("x", 4, n) for n in scaling.SIZES]
    assert [name for name, *_ in scaling.grid("depth", "x", 4, 64)] == [f"nfnet_f{i}" for i in range(7)]


def test_points(tmp_path):
    grid = [("nf_resnet26_small", n, 32) for n in (1, 2)]
    points = list(scaling.measure("batch", grid, rounds=1))
    model = create_model("nf_resnet26_small")
    assert [p.macs for p in points] == [n * count_macs(model, (3, 32, 32)) for n in (1, 2)]
    assert {p.params for p in points} == {sum(p.numel() for p in model.parameters())}
    assert points[1].kept > points[0].kept > 0
    scaling.write(points, tmp_path / "scaling.csv")
    with (tmp_path / "scaling.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["macs"]) for row in rows] == [p.macs for p in points]
    assert rows[0]["model"] == "nf_resnet26_small"


def test_the_picture_has_a_column_for_each_series(tmp_path):
    points = [
        Point(series, f"nfnet_f{i}", 2, 64, 10, (i + 1) * 10**9, 0.1 * (i + 1), 10**8 * (i + 1), 2 * 10**8)
        for series in ("batch", "depth")
        for i in range(3)
    ]
    figure = scaling.plot(points)
    assert len(figure.axes) == 4
    assert "largest distance from the line 0%" in figure.axes[0].get_title()
    assert {text.get_text() for text in figure.axes[1].texts} == {"F0", "F1", "F2"}
    figure.savefig(tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_the_picture_of_one_point_says_what_it_is_of():
    figure = scaling.plot([Point("batch", "nfnet_f0", 1, 64, 10, 10**9, 0.1, 10**8, 2 * 10**8)])
    assert [axes.get_title() for axes in figure.axes] == ["batch (nfnet_f0, 64 px)"] * 2
