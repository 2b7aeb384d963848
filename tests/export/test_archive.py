"""Archives of torch.export: PyTorch alone runs them; description, precisions, and how opening fails."""

import json
import zipfile
from pathlib import Path

import pytest
import tiny_runs
import torch
from small_models import small
from torch import nn

import normfree
from normfree import UsageError
from normfree.export import Preprocessing, open_archive, to_archive
from normfree.export.description import RESIZE

VIEW = Preprocessing(8, 1, (0.5,), (0.5,), 0)  # of the tiny network


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return tiny_runs.network(drop_rate=0.0, stochdepth_rate=0.0).eval()


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert (found.shape, found.dtype) == (expected.shape, torch.float32)
    return ((found - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
def test_torch_alone_runs_it(tmp_path):
    model = small("nfnet_f0")
    written = to_archive(model, tmp_path / "a.pt2", preprocessing=Preprocessing.of(model, 75))
    assert (written.checked, written.outputs) == ((1, 3), 10)
    network = torch.export.load(written.path).module()
    for batch in (1, 4):
        images = torch.randn(batch, 3, 75, 75)
        assert difference(network(images), model(images)) < 1e-5


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """(model, what was written) of the tiny network."""
    model, path = tiny(), tmp_path_factory.mktemp("one") / "tiny.pt2"
    return model, to_archive(model, path, preprocessing=VIEW, classes=list("abcdefghij"), name="mine")


def test_description(one):
    _, written = one
    extra = {"normfree": ""}
    torch.export.load(written.path, extra_files=extra)
    said = json.loads(extra["normfree"])
    assert (said["model"], said["classes"], said["opset"]) == ("mine", list("abcdefghij"), None)
    assert (said["preprocessing"]["size"], said["preprocessing"]["resize_margin"]) == (8, 0)
    assert (said["torch"], said["normfree"]) == (torch.__version__, normfree.__version__)
    assert open_archive(written.path).description == written.description


def test_no_inputs_and_no_arithmetic_on_weights_are_stored(one):
    _, written = one
    with zipfile.ZipFile(written.path) as archive:
        (inputs,) = [entry for entry in archive.infolist() if entry.filename.endswith("sample_inputs/model.pt")]
    assert inputs.file_size == 0
    program = torch.export.load(written.path)
    weights = set(program.graph_signature.inputs_to_parameters)
    for node in program.graph.nodes:
        if node.op == "call_function" and node.all_input_nodes:
            assert not {argument.name for argument in node.all_input_nodes} <= weights


def test_the_same_network_gives_the_same_bytes_and_none_name_this_computer(one, tmp_path):
    model, written = one
    about = written.description
    again = to_archive(model, tmp_path / "tiny.pt2", preprocessing=VIEW, classes=about.classes, name=about.model)
    assert again.path.read_bytes() == written.path.read_bytes()
    half = to_archive(model, tmp_path / "half.pt2", preprocessing=VIEW, precision="bfloat16")
    for path in (written.path, half.path):
        assert str(Path(normfree.__file__).parent).encode() not in path.read_bytes()


@torch.no_grad()
def test_opened_again_it_computes_the_same(one):
    model, written = one
    images = torch.randn(5, 1, 8, 8)
    assert difference(open_archive(written.path).run(images), model(images)) < 1e-5


# a hundred times the step between two numbers of the precision, of which few layers add up
@pytest.mark.parametrize(("precision", "step"), [("float16", 2**-11), ("bfloat16", 2**-8)])
@torch.no_grad()
def test_other_precisions_take_and_give_float32(tmp_path, precision, step):
    model = tiny()
    written = to_archive(model, tmp_path / "a.pt2", preprocessing=VIEW, precision=precision)
    images = torch.randn(2, 1, 8, 8)
    network = torch.export.load(written.path)
    assert step / 100 < difference(network.module()(images), model(images)) < min(20 * step, 0.05)
    assert {tensor.dtype for tensor in network.state_dict.values()} == {getattr(torch, precision)}
    assert written.description.precision == precision


def test_a_fixed_batch(tmp_path):
    written = to_archive(tiny(), tmp_path / "a.pt2", preprocessing=VIEW, batch=2)
    assert (written.checked, written.description.batch) == ((2,), 2)
    with pytest.raises(UsageError, match=r"a\.pt2 cannot be run: .*to be equal to 2"):
        open_archive(written.path).run(torch.randn(3, 1, 8, 8))


def test_another_suffix(tmp_path):
    with pytest.raises(UsageError, match=r"must end in \.pt2"):
        to_archive(tiny(), tmp_path / "a.pt", preprocessing=VIEW)


def foreign(path, text: str | None = None):
    program = torch.export.export(nn.Linear(2, 2).eval(), (torch.zeros(1, 2),))
    torch.export.save(program, path, extra_files={} if text is None else {"normfree": text})


SEEN = dict(size=2, channels=1, mean=[0.5], std=[0.5], resize="centre", **RESIZE["centre"])
DESCRIBED = json.dumps(  # as a network of 2 numbers is not
    dict(format=1, model="a", classes=None, precision="float32", batch=None, opset=None, normfree="1", torch="2")
    | dict(shape=[2], preprocessing=SEEN)
)


def cut(path):
    to_archive(tiny(), path, preprocessing=VIEW)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist() if not name.endswith("model.json")}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path, "does not exist"),
        (lambda path: path.write_bytes(b"no"), "cannot be read as an archive"),
        (foreign, "was not written by normfree export"),
        (lambda path: foreign(path, "{"), "cannot be used"),
        (lambda path: foreign(path, DESCRIBED), "holds an entry of .* bytes .*sample_inputs.* it is not opened"),
        (cut, "cannot be loaded by torch"),
    ],
)
def test_files_that_cannot_be_opened(tmp_path, capfd, make, said):
    path = tmp_path / "a.pt2"
    make(path)
    with pytest.raises(UsageError, match=said) as caught:
        open_archive(path)
    assert str(path) in str(caught.value)
    assert capfd.readouterr() == ("", "")
