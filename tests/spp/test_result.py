"""The table: columns, stages, round trips."""

import csv
import io
import json
import math

import pytest
from spp.hand_made import LAYOUTS, Net

import normfree
from normfree import UsageError
from normfree.spp import SPP, Row, record
from normfree.spp.rows import COLUMNS

NAN, INF = float("nan"), float("inf")


def handwritten() -> SPP:
    rows = [
        Row(
            "a,b", 0, avg_sq_mean=0.125, avg_var=1.5, res_avg_var=0.5, added_var=0.5, expected_var=1.0, shape=(8, 4, 4)
        ),
        Row("c", 0, avg_sq_mean=NAN, avg_var=INF, res_avg_var=NAN, activated=True),
        Row("d", 1, transition=True, avg_sq_mean=1e-30, avg_var=1e30, shortcut_var=2.0, gate=0.5),
    ]
    return SPP("net", rows, Row("stem", 0, avg_sq_mean=0.0, avg_var=1.0))


def recorded() -> SPP:
    model = normfree.create_model("nf_regnet_b0", widths=(16, 24, 32, 48), depths=(1, 1, 1, 1), num_classes=10)
    return record(model, (2, 3, 32, 32))


def same(a: SPP, b: SPP) -> bool:
    return repr(a) == repr(b)  # nan is nan


@pytest.mark.parametrize("make", [handwritten, recorded, lambda: SPP("net", [Row("a", 0)])])
def test_round_trips(make):
    spp = make()
    assert same(SPP.from_dict(spp.to_dict()), spp)
    assert same(SPP.from_dict(json.loads(spp.to_json())), spp)


def test_plain_numbers_only():
    def leaves(value):
        if isinstance(value, dict):
            value = list(value.values())
        return [leaf for v in value for leaf in leaves(v)] if isinstance(value, list | tuple) else [value]

    assert {type(leaf) for leaf in leaves(recorded().to_dict())} <= {str, int, float, bool, type(None)}


@pytest.mark.parametrize(
    "content",
    [{}, [], None, "text", {"name": "a", "stem": None}, {"name": "a", "stem": None, "rows": [{"block": "a"}]}]
    + [{"name": "a", "stem": None, "rows": rows} for rows in (None, [[1]], [{"unknown": 1}], ["x"])],
)
def test_what_is_no_result_is_refused(content):
    with pytest.raises(UsageError, match="not a recorded signal propagation plot"):
        SPP.from_dict(content)


def test_csv():
    spp = handwritten()
    lines = list(csv.DictReader(io.StringIO(spp.to_csv())))
    assert list(lines[0]) == COLUMNS
    assert [line["block"] for line in lines] == ["stem", "a,b", "c", "d"]
    assert [float(line["avg_var"]) for line in lines] == [1.0, 1.5, INF, 1e30]
    assert math.isnan(float(lines[2]["res_avg_var"]))
    assert lines[0]["res_avg_var"] == lines[3]["expected_var"] == lines[3]["ratio"] == ""
    assert float(lines[1]["ratio"]) == 1.5
    assert lines[3]["transition"] == "True"


def test_lists_and_stages():
    spp = handwritten()
    assert spp.blocks == ["a,b", "c", "d"]
    assert spp.avg_var == [1.5, INF, 1e30]
    assert math.isnan(spp.avg_sq_mean[1])
    assert spp.res_avg_var[::2] == [0.5, None]
    assert spp.expected_var == [1.0, None, None]
    assert spp.stage_ends == [1, 2]


def test_text():
    lines = str(handwritten()).splitlines()
    assert lines[0] == "net: 3 residual blocks in 2 stages"
    assert len(lines) == 6
    assert lines[2].split() == ["stem", "0", "1"]
    assert lines[3].split() == ["a,b", "0.125", "1.5", "0.5", "1"]
    assert len({len(line) for line in lines[1:]}) == 1  # aligned
    assert str(SPP("net", [Row("a" * 40, 0)])).splitlines()[2].startswith("a" * 40)


@pytest.mark.parametrize("suffix", ["csv", "json", "png", "svg"])
def test_save(tmp_path, suffix):
    spp = record(Net(LAYOUTS["NCHW"], lambda b, x, f: x + f), (4, 3, 8, 8))
    path = spp.save(str(tmp_path / f"table.{suffix}"))
    assert path.stat().st_size > 100
    if suffix == "csv":
        assert path.read_text() == spp.to_csv()
    if suffix == "json":
        assert same(SPP.from_dict(json.loads(path.read_text())), spp)


def test_save_as_something_else(tmp_path):
    with pytest.raises(UsageError, match=r"must end in \.csv, \.json"):
        handwritten().save(tmp_path / "table.txt")


@pytest.mark.parametrize("suffix", ["csv", "json", "png"])
def test_save_where_nothing_can_be_written(tmp_path, suffix):
    with pytest.raises(UsageError, match=r"folder .*nowhere does not exist"):
        handwritten().save(tmp_path / "nowhere" / f"table.{suffix}")
    (tmp_path / f"a.{suffix}").mkdir()
    with pytest.raises(UsageError, match="it is a folder"):
        handwritten().save(tmp_path / f"a.{suffix}")
