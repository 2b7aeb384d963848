"""Archives are looked through before torch opens them: nothing that torch would run, load or evaluate is in them."""

import io
import zipfile

import hostile_corpus
import pytest
import tiny_runs
import torch
from torch import nn

from normfree import UsageError
from normfree.export import Preprocessing, open_archive, to_archive
from normfree.export.contents import check_contents

VIEW = Preprocessing(8, 1, (0.5,), (0.5,), 0)  # of the tiny network


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> bytes:
    torch.manual_seed(0)
    network = tiny_runs.network(drop_rate=0.0, stochdepth_rate=0.0).eval()
    path = tmp_path_factory.mktemp("good") / "a.pt2"
    to_archive(network, path, preprocessing=VIEW, classes=list("abcdefghij"))
    return path.read_bytes()


def test_every_hostile_archive_is_refused_unopened(good, tmp_path, monkeypatch):
    """But for those of which the description alone is wrong, or whose damage changes nothing that is read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.export, "load", lambda path: pytest.fail("torch opens it"))
    refused = 0
    for name, content in hostile_corpus.exported_archives(good):
        if name.startswith(("describes ", "damage ", "a version")):
            continue
        (tmp_path / "a.pt2").write_bytes(content() if callable(content) else content)
        with pytest.raises(UsageError) as caught:
            open_archive("a.pt2")
        assert "a.pt2" in str(caught.value), name
        refused += 1
    assert refused > 25
    assert not (tmp_path / hostile_corpus.CANARY).exists()


@pytest.mark.parametrize("name", ["4096 px", "batch 4096", "3 channels"])
def test_a_description_of_another_network(good, tmp_path, name):
    content = dict(hostile_corpus.exported_archives(good))[f"describes {name}"]
    (tmp_path / "a.pt2").write_bytes(content)
    with pytest.raises(UsageError, match=r"is described as taking images|must have a number for each of 3 channels"):
        open_archive(tmp_path / "a.pt2")


class Other(nn.Module):
    """Operators, texts and sizes that our own networks do not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, _, height, width = x.shape
        rows = x.reshape(count * height, width)
        rows = torch.einsum("ij,kj->ik", rows, torch.ones(width, width)).view(count, 1, height, width)
        grown = nn.functional.interpolate(nn.functional.pad(rows, (1, 1, 1, 1), mode="reflect"), scale_factor=2.0)
        first, second = nn.functional.gelu(grown, approximate="tanh").chunk(2, dim=2)
        return torch.cat([first, second], 1).flatten(2).softmax(-1).mean(2)


def test_networks_of_others_are_let_through(tmp_path):
    to_archive(Other().eval(), tmp_path / "a.pt2", preprocessing=VIEW)
    images = torch.randn(3, 1, 8, 8)
    assert torch.allclose(open_archive(tmp_path / "a.pt2").run(images), Other()(images), atol=1e-6)


def test_what_export_writes_is_let_through(good, tmp_path):
    """Also written anew by another program, with its entries in another order."""
    (tmp_path / "a.pt2").write_bytes(good)
    check_contents(tmp_path / "a.pt2")
    with zipfile.ZipFile(io.BytesIO(good)) as whole, zipfile.ZipFile(tmp_path / "b.pt2", "w") as made:
        for name in sorted(whole.namelist()):
            made.writestr(name, whole.read(name))
    check_contents(tmp_path / "b.pt2")
    images = torch.randn(2, 1, 8, 8)
    first, second = (open_archive(tmp_path / name).run(images) for name in ("a.pt2", "b.pt2"))
    assert torch.equal(first, second)
