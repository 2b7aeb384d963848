"""The papers' ratios, and which networks stand beside each other."""

import pytest
import torchvision

from normfree import UsageError, create_model, list_models
from normfree.bench import tables
from normfree.bench.tables import TABLES


def test_ratios_of_the_papers():
    """NFNets, table 3: 73.3 and 41.6 ms on TPUv3, 56.7 and 35.3 on V100; table 6: 73.3 and 111.7; NF-ResNets, tables 4
    and 5: 17.3 and 16.42, 12.2 and 5.23 iterations per second.
    """
    assert TABLES[3].rows[0].paper == pytest.approx({"TPUv3": 1.762, "V100": 1.606}, abs=1e-3)
    assert TABLES[4].rows[0].paper == pytest.approx({"V100": 0.949}, abs=1e-3)
    assert TABLES[5].rows[0].paper == pytest.approx({"V100": 0.429}, abs=1e-3)
    assert TABLES[6].rows[0].paper == pytest.approx({"TPUv3": 0.656}, abs=1e-3)


@pytest.mark.parametrize("number", TABLES)
def test_networks_exist(number):
    for row in TABLES[number].rows:
        assert row.network in list_models()
        assert row.peer in list_models() or row.peer in torchvision.models.list_models()
        assert 192 <= row.size <= 380
        assert all(0.2 < ratio < 20 for ratio in row.paper.values())


def test_normalizer_free_beside_normalized():
    for table in TABLES.values():
        assert all(not has_norm(row.network) for row in table.rows)
        assert all(has_norm(row.peer) for row in table.rows[:1])


def has_norm(name):
    import torch

    with torch.device("meta"):
        model = create_model(name) if name in list_models() else torchvision.models.get_model(name)
    return any("Norm" in type(module).__name__ for module in model.modules())


def test_a_row_measured():
    seen = []
    settings = dict(batch_size=2, rounds=1, rows=1, size=32, started=seen.append)
    ((row, ours, theirs),) = tables.measure(TABLES[4], **settings)
    assert seen == [row] == [TABLES[4].rows[0]]
    assert len(ours.seconds) == len(theirs.seconds) == 1


def test_unknown_network():
    with pytest.raises((UsageError, ValueError)):
        tables.network_of("resnot50")
