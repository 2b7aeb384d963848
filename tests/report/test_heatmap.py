"""Lines at any steps become columns; values become colours."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from report.pages import Page

from normfree.report.heatmap import MAX_COLUMNS, Columns, HeatMap, Ramp, columns, draw_map

RAMP = Ramp(("ffffff", "ff0000"), ("000000", "0000ff"))


def mean(rows: np.ndarray) -> np.ndarray:
    return rows.mean(0)


def test_each_column_shows_the_line_that_speaks_for_its_steps():
    """Lines at 10, 20 and 24: each speaks for the steps since the one before."""
    found = columns([10, 20, 24], np.array([[1.0], [2.0], [3.0]]), mean)
    middles = (np.arange(MAX_COLUMNS) + 0.5) * 24 / MAX_COLUMNS
    expected = np.where(middles <= 10, 1, np.where(middles <= 20, 2, 3))
    assert np.array_equal(found.values, expected[None])
    assert [found.spans[i] for i in (0, -1)] == [(10, 10), (24, 24)]
    assert found.last == 24


def test_many_lines_are_pooled():
    count = 10 * MAX_COLUMNS
    steps = [5 * (i + 1) for i in range(count)]
    rows = np.random.default_rng(0).random((count, 3))
    found = columns(steps, rows, mean)
    assert found.values == pytest.approx(rows.reshape(MAX_COLUMNS, 10, 3).mean(1).T)
    assert found.spans[1] == (55, 100)
    largest = columns(steps, rows, lambda part: part.max(0))
    assert largest.values.max() == rows.max()  # no line is lost


@pytest.mark.parametrize("steps", [[1], [7], [1, 1000], [999, 1000], list(range(1, 700, 3)), [*range(1, 500), 10**6]])
def test_every_column_has_a_line(steps):
    found = columns(steps, np.arange(len(steps), dtype=float)[:, None], mean)
    assert found.values.shape == (1, MAX_COLUMNS)
    assert np.isfinite(found.values).all()
    assert all(a <= b for a, b in found.spans)


def heat(shades: np.ndarray, names=("a.0", "a.1", "b")) -> Page:
    values = Columns(shades, [(i + 1, i + 1) for i in range(shades.shape[1])], shades.shape[1])
    side = ["x"] * len(names)
    return Page(str(draw_map(HeatMap("m", names, values, shades, RAMP, [(0, "0")], side, "mean", "fraction"))).encode())


def pixels(uri: str) -> np.ndarray:
    assert uri.startswith("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        return np.array(image.convert("RGBA")).astype(int)


def test_colours_are_the_ramps():
    shades = np.array([[0.0, 0.5, 1.0], [np.nan, 0.25, -3], [9, 1, 0]])
    page = heat(shades)
    light, dark = pixels(page.all("img")[0]["src"]), pixels(page.all("source")[0]["srcset"])
    assert page.all("source")[0]["media"] == "(prefers-color-scheme: dark)"
    known, places = ~np.isnan(shades), np.clip(np.nan_to_num(shades), 0, 1)
    assert np.array_equal(light[..., 3] > 0, known)
    assert np.abs(light[..., 1] - 255 * (1 - places))[known].max() <= 1  # white to red
    assert np.abs(dark[..., 2] - 255 * places)[known].max() <= 1  # black to blue


def test_the_script_has_the_values():
    page = heat(np.array([[0.0, 0.123456], [np.nan, 1.0], [0.5, 0.25]]))
    (data,) = page.data("map")
    assert data["values"] == [[0.0, 0.123], [None, 1.0], [0.5, 0.25]]
    assert data["names"] == ["a.0", "a.1", "b"]
    assert data["steps"] == [[1, 1], [2, 2]]


def test_stages_are_told_apart():
    lines = [a["style"] for a in heat(np.zeros((3, 2))).all("u")]
    assert lines == ["top:66.667%"]  # a.0 and a.1, then b


def test_size():
    """60 layers and as many columns as there can be."""
    shades = np.random.default_rng(0).random((60, MAX_COLUMNS))
    page = heat(shades, [f"stages.{i // 20}.{i % 20}" for i in range(60)])
    assert len(page.source) < 250_000
