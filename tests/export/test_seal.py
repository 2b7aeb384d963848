"""Checksums of exported files, and what is refused before a runtime sees it."""

import contextlib
import random
import shutil
from pathlib import Path

import onnx
import onnxruntime
import pytest
import tiny_runs
import torch
from exported_files import without
from onnx import TensorProto, helper
from selection import share

from normfree import UsageError
from normfree.export import Preprocessing, onnx_file, open_archive, open_onnx, seal, to_archive, to_onnx
from normfree.export.protobuf import OnnxFile
from normfree.export.seal import data_file

VIEW = Preprocessing(8, 1, (0.5,), (0.5,), 0)
OPEN = dict(onnx=open_onnx, pt2=open_archive)


def tiny() -> torch.nn.Module:
    torch.manual_seed(0)
    return tiny_runs.network(drop_rate=0.0, stochdepth_rate=0.0).eval()


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, Path]:
    """A file of each kind."""
    folder = tmp_path_factory.mktemp("written")
    to_onnx(tiny(), folder / "a.onnx", preprocessing=VIEW)
    to_archive(tiny(), folder / "a.pt2", preprocessing=VIEW)
    return dict(onnx=folder / "a.onnx", pt2=folder / "a.pt2")


@pytest.fixture(params=["onnx", "pt2"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def path(kind, written, tmp_path) -> Path:
    return Path(shutil.copy(written[kind], tmp_path / f"b.{kind}"))


@pytest.fixture
def unseen(monkeypatch):
    """No runtime may see the file."""

    def refuse(*args, **options):
        raise AssertionError("a runtime was given the file")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    monkeypatch.setattr(torch.export, "load", refuse)


@pytest.mark.scaled
def test_any_other_byte_is_noticed(kind, path, unseen):
    """At places drawn all over the file, its first and last bytes among them."""
    content = path.read_bytes()
    places = [0, len(content) - 1, *random.Random(0).sample(range(len(content)), share(100))]
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        with pytest.raises(UsageError) as caught:
            OPEN[kind](path)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("cut", [1, 50, 82, 200, 10_000])
def test_a_file_that_ends_early_is_refused(kind, path, cut):
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(UsageError):
        OPEN[kind](path)


def test_a_whole_file_is_as_it_was_written(kind, path):
    assert OPEN[kind](path).sealed


def test_a_description_that_was_edited_is_refused(kind, path, unseen):
    content = path.read_bytes()
    assert content.count(b'"resize_margin": 0') == 1
    path.write_bytes(content.replace(b'"resize_margin": 0', b'"resize_margin": 9'))
    with pytest.raises(UsageError, match=rf"b\.{kind} is not as it was written: .* Export it again"):
        OPEN[kind](path)


def test_files_of_earlier_versions_are_used(kind, path, written):
    without(path)
    opened, images = OPEN[kind](path), torch.randn(2, 1, 8, 8)
    assert not opened.sealed
    assert torch.equal(opened.run(images), OPEN[kind](written[kind]).run(images))
    seal(path)
    assert OPEN[kind](path).sealed


def test_sealing_again_changes_nothing(kind, path, written):
    seal(path)
    assert path.read_bytes() == written[kind].read_bytes()


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_what_cannot_be_sealed(tmp_path, suffix):
    for content in (None, b"", b"no"):
        path = tmp_path / f"a{suffix}"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UsageError, match=rf"a\{suffix} "):
            seal(path)
        assert content is None or path.read_bytes() == content


def test_weights_in_a_second_file(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "EXTERNAL_ABOVE", 0)
    path = to_onnx(tiny(), tmp_path / "a.onnx", preprocessing=VIEW).path
    assert open_onnx(path).sealed
    monkeypatch.setattr(onnxruntime, "InferenceSession", None)  # must not see it
    data = data_file(path)
    content = data.read_bytes()
    data.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    with pytest.raises(UsageError, match=r"a\.onnx\.data is not as it was written"):
        open_onnx(path)
    data.unlink()
    with pytest.raises(UsageError, match=r"a\.onnx\.data cannot be read: No such file"):
        open_onnx(path)


def loop() -> onnx.ModelProto:
    """x, negated 2**62 times."""
    inside = helper.make_graph(
        [helper.make_node("Neg", ["a"], ["b"]), helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, None),
        ],
    )
    node = helper.make_node("Loop", ["times", "", "image"], ["logits"], body=inside)
    return model_of([node], [helper.make_tensor("times", TensorProto.INT64, [], [2**62])])


def branch(name: str = "If") -> onnx.ModelProto:
    parts = [
        helper.make_graph([helper.make_node("Neg", ["image"], [out])], out, [], [_value(out)]) for out in ("yes", "no")
    ]
    node = helper.make_node(name, ["always"], ["logits"], then_branch=parts[0], else_branch=parts[1])
    return model_of([node], [helper.make_tensor("always", TensorProto.BOOL, [], [True])])


def function() -> onnx.ModelProto:
    body = helper.make_function(
        "mine", "f", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], [helper.make_opsetid("", 20)]
    )
    node = helper.make_node("f", ["image"], ["logits"], domain="mine")
    return model_of([node], [], functions=[body])


def _value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1, 8, 8])


def model_of(nodes, tensors, **more) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", [_value("image")], [_value("logits")], tensors)
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("mine", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, **more)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (loop(), "the operator 'Loop' with a graph of its own, which may run for ever"),
        (branch(), "the operator 'If' with a graph of its own"),
        (branch("Unheard"), "the operator 'Unheard' with a graph of its own"),
        (function(), "functions of its own"),
    ],
    ids=["loop", "if", "unknown", "function"],
)
@pytest.mark.parametrize("whole", [True, False], ids=["sealed", "not sealed"])
def test_control_flow_is_refused_before_it_can_run(written, tmp_path, unseen, model, said, whole):
    """With the description of a real file, and a checksum that is right."""
    described = onnx.load(written["onnx"]).metadata_props
    helper.set_model_props(model, {entry.key: entry.value for entry in described if entry.key == "normfree"})
    onnx.save(model, tmp_path / "a.onnx")
    if whole:
        seal(tmp_path / "a.onnx")
    with pytest.raises(UsageError, match=said):
        open_onnx(tmp_path / "a.onnx")


def test_a_graph_in_two_pieces_is_looked_at_as_one(written, tmp_path, unseen):
    """Protobuf joins what comes twice: a loop may hide behind an innocent graph."""
    (tmp_path / "a.onnx").write_bytes(written["onnx"].read_bytes() + loop().SerializeToString())
    with pytest.raises(UsageError):
        open_onnx(tmp_path / "a.onnx")
    file = OnnxFile(tmp_path / "a.onnx")
    with pytest.raises(UsageError, match="'Loop'"):
        file.check_operators()


def test_what_the_reader_sees_is_what_the_package_onnx_sees(written):
    file, model = OnnxFile(written["onnx"]), onnx.load(written["onnx"])
    expected = {entry.key: entry.value for entry in model.metadata_props}
    assert {name: value.decode() for name, value, _ in file.metadata()} == expected
    file.check_operators()


@pytest.mark.scaled
def test_bytes_that_are_no_model(written, tmp_path):
    """Drawn ones, and pieces of a file with bytes exchanged: no other error than the one that says so."""
    draw, content, path = random.Random(1), written["onnx"].read_bytes()[-3000:], tmp_path / "a.onnx"
    for number in range(share(400)):
        some = bytearray(content[draw.randrange(2900) :] if number % 2 else draw.randbytes(draw.randrange(1, 200)))
        for _ in range(draw.randrange(1, 6)):
            some[draw.randrange(len(some))] = draw.randrange(256)
        path.write_bytes(some)
        with contextlib.suppress(UsageError):
            file = OnnxFile(path)
            file.check_operators()
            list(file.metadata())


def test_parts_without_end(tmp_path):
    """Two bytes for each: counted, not taken."""
    (tmp_path / "a.onnx").write_bytes(b"\x08\x00" * 600_000)
    with pytest.raises(UsageError, match="it has more than 500,000 parts"):
        OnnxFile(tmp_path / "a.onnx")
