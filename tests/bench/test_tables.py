"""The papers' figures, which networks stand beside each other, and what happens where memory ends."""

import pytest
import torch
import torchvision
from torch import nn

from normfree import RunFailed, UsageError, list_models
from normfree.bench import tables
from normfree.bench.published import STEPS
from normfree.bench.tables import TABLES, Row, Side
from normfree.report.published import published_figure


def ratios(row):
    return {(value.machine, value.batch): value.ratio for value in row.published}


def find(table, ours, theirs):
    (row,) = [row for row in TABLES[table].rows if (str(row.ours), str(row.theirs)) == (ours, theirs)]
    return row


def test_ratios_of_the_papers():
    """NFNets, table 3: 73.3 and 41.6 ms on TPUv3, 56.7 and 35.3 on V100; table 6: 73.3 and 111.7; NF-ResNets, table 5:
    12.2 and 5.23 iterations per second.
    """
    assert ratios(TABLES[3].rows[0]) == pytest.approx({("TPUv3", 32): 1.762, ("V100", 32): 1.606}, abs=1e-3)
    assert ratios(TABLES[5].rows[0]) == pytest.approx({("V100", 16): 0.429}, abs=1e-3)
    assert ratios(TABLES[6].rows[0]) == pytest.approx({("TPUv3", 32): 0.656}, abs=1e-3)


def test_the_times_are_those_of_the_figure():
    """Table 3 stands in ``report.published`` as well, where the picture of figure 1 takes it from."""
    lines = published_figure("nfnets_1").lines
    drawn = {point.label: point.x for name in ("NFNet", "NFNet + SAM", "EfficientNet") for point in lines[name]}
    names = {
        f"nfnet_{label}".replace("_F", "_f") if label[0] == "F" else f"bn_efficientnet_{label.lower()}": label
        for label in drawn
    }
    assert {name: STEPS[name][0] for name in names} == {name: drawn[label] for name, label in names.items()}
    assert len(names) == 8 + 6


def test_batches_of_table_4():
    """17.3 and 16.42, 10.5 and 9.45, 5.79 and 5.24 iterations per second; 200 layers at batch 64: out of memory."""
    expected = {("V100", 16): 16.42 / 17.3, ("V100", 32): 9.45 / 10.5, ("V100", 64): 5.24 / 5.79}
    assert ratios(TABLES[4].rows[0]) == pytest.approx(expected)
    assert ratios(find(4, "nf_resnet200", "bn_resnet200"))["V100", 64] is None


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ("nfnet_f1", "bn_efficientnet_b7", {("TPUv3", 32): 158.5 / 1397.0, ("V100", 32): 133.9 / 1753.3}),  # 8.8 times
        ("nfnet_f4", "bn_efficientnet_b6", {("TPUv3", 32): 1033.3 / 775.7, ("V100", 32): 1190.6 / 868.2}),
        ("nfnet_f5", "bn_efficientnet_b7", {("TPUv3", 32): 1398.5 / 1397.0, ("V100", 32): 2177.1 / 1753.3}),
        ("nfnet_f5 + SAM", "nfnet_f5", {("TPUv3", 32): 1958.0 / 1398.5}),  # 20 to 40 % more, says appendix A.4
        ("nfnet_f6 + SAM", "resnet50", {("TPUv3", 32): 2774.1 / 41.6}),
    ],
)
def test_large_networks_of_table_3(ours, theirs, expected):
    assert ratios(find(3, ours, theirs)) == pytest.approx(expected)


def test_ladder_of_table_6():
    row = find(6, "nfnet_f3 default_width", "nfnet_f3")
    assert ratios(row) == pytest.approx({("TPUv3", 32): 452.2 / 532.2})
    assert row.ours.options == {"widths": (256, 512, 1024, 2048)}
    assert len(TABLES[6].rows) == 4 * 4


@pytest.mark.parametrize("number", TABLES)
def test_networks_exist(number):
    for row in TABLES[number].rows:
        assert row.ours.network in list_models()
        for side in (row.ours, row.theirs):
            assert side.network in list_models() or side.network in torchvision.models.list_models()
            assert 192 <= side.size <= 600
        assert row.published
        assert all(0.05 < ratio < 70 for ratio in ratios(row).values() if ratio is not None)


def test_sizes_are_those_of_training():
    sizes = {str(side): side.size for row in TABLES[3].rows for side in (row.ours, row.theirs)}
    assert [sizes[f"nfnet_f{k}"] for k in range(6)] == [192, 224, 256, 320, 384, 416]
    assert [sizes[f"bn_efficientnet_b{k}"] for k in (0, 3, 4, 5, 6, 7)] == [224, 300, 380, 456, 528, 600]
    assert all(row.ours.size == row.theirs.size for number in (4, 5, 6) for row in TABLES[number].rows)


def test_normalizer_free_beside_normalized():
    for table in TABLES.values():
        assert not any(has_norm(row.ours) for row in table.rows[:2])  # the others are deeper
        assert all(has_norm(row.theirs) for row in table.rows[:2])


def has_norm(side):
    with torch.device("meta"):
        model = tables.network_of(side.network, **side.options)
    return any("Norm" in type(module).__name__ for module in model.modules())


def test_a_row_measured():
    ours, theirs = tables.measure(TABLES[4].rows[0], batch_size=2, steps=2, size=32)
    assert len(ours.samples.seconds) + ours.samples.disturbed == 2
    assert len(theirs.samples.seconds) + theirs.samples.disturbed == 2
    assert ours.micro_batch is None
    assert theirs.micro_batch is None


class Greedy(nn.Module):
    """A network for whose activations memory is too small beyond so many images."""

    def __init__(self, most):
        super().__init__()
        self.most, self.seen = most, []
        self.linear = nn.Linear(3, 1000)

    def forward(self, x):
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.seen.append(len(x))
        return self.linear(x.mean((2, 3)))


@pytest.fixture
def greedy(monkeypatch):
    """Networks by the number of images for which memory is large enough."""
    made = {}

    def network_of(name, **options):
        if name == "too large":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return made.setdefault(name, Greedy(int(name)))

    monkeypatch.setattr(tables, "network_of", network_of)
    return made


def measure(ours, theirs="100", **settings):
    row = Row(Side(ours, 8, sam=settings.pop("sam", False)), Side(theirs, 8), ())
    return tables.measure(row, batch_size=10, steps=2, **settings)


@pytest.mark.parametrize(("most", "micro_batch", "pieces"), [(10, None, [10]), (5, 5, [5, 5]), (4, 3, [3, 3, 3, 1])])
def test_gradients_accumulate_where_memory_is_short(greedy, most, micro_batch, pieces):
    ours, theirs = measure(str(most))
    assert (ours.micro_batch, theirs.micro_batch) == (micro_batch, None)
    assert greedy[str(most)].seen == pieces * 4  # two steps of warm-up and two that count
    assert greedy["100"].seen == [10] * 4


@pytest.mark.parametrize("name", ["0", "too large"])
def test_out_of_memory(greedy, name):
    """The other network is measured nevertheless."""
    ours, theirs = measure(name)
    assert ours.samples is None
    assert len(theirs.samples.seconds) + theirs.samples.disturbed == 2


def test_a_fifth_of_the_batch_for_the_ascent(greedy):
    measure("10", sam=True)
    assert greedy["10"].seen == [2, 10] * 4


def test_steps_that_float16_leaves_out_do_not_count(greedy, monkeypatch):
    """The first loss scale is too large: nothing is timed before there is an update."""
    steps = []

    class Overflowing(tables.TrainStep):
        def __call__(self, *args):
            result = super().__call__(*args)
            steps.append(self.skipped)
            if len(steps) <= 3:
                self.skipped = 1
            return result

    monkeypatch.setattr("normfree.bench.step.TrainStep", Overflowing)
    measure("10", precision="float16")
    assert greedy["10"].seen == [10] * (4 + 3)
    assert greedy["100"].seen == [10] * 4


def test_another_fault_stops():
    row = Row(Side("nf_resnet50", 8, options=dict(in_chans=4)), Side("nf_resnet50", 8), ())
    with pytest.raises(RunFailed, match="nf_resnet50 cannot train on batch 2 of 8 px: RuntimeError: "):
        tables.measure(row, batch_size=2, steps=1)


def test_unknown_network():
    with pytest.raises((UsageError, ValueError)):
        tables.network_of("resnot50")
