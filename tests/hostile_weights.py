"""Damaged and hostile safetensors files, and every way that a file of weights can be opened."""

import json
import pickle
import struct

from safetensors.torch import save_file
from tiny_runs import OPTIONS, network

import normfree
from normfree import UsageError
from normfree.cli import main
from normfree.runs.initialize import initialize
from normfree.runs.load import load_trained
from normfree.weights import load_haiku, load_timm

RECIPE = dict(model=dict(name="nf_resnet26_small", options={k: list(v) for k, v in OPTIONS.items()}))
RECIPE["data"] = dict(channels=1, test_size=8, resize_margin=0)
DESCRIPTION = dict(recipe=RECIPE, classes=list("0123456789"))
HUGE = 2**60


def safetensors(header, data: bytes = b"", length: int | None = None) -> bytes:
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(shape=(2,), offsets=(0, 8), dtype="F32"):
    return dict(dtype=dtype, shape=list(shape), data_offsets=list(offsets))


def written(state, description) -> bytes:
    """A file of ours; ``description`` is JSON, as text or not yet."""
    text = description if isinstance(description, str) else json.dumps(description)
    save_file(state, "whole.safetensors", metadata=dict(normfree=text))
    with open("whole.safetensors", "rb") as file:
        return file.read()


def open_by_command(path, capsys) -> None:
    """``normfree convert``: a UsageError of its own where it ends with exit code 2."""
    capsys.readouterr()
    to = ["x.npz"] if str(path).endswith(".safetensors") else ["x.safetensors", "--to", "normfree"]
    code = main(["convert", str(path), *to, "--overwrite", "--quiet"])
    out, err = capsys.readouterr()
    assert code in (0, 2), err
    if code == 2:
        assert out == ""
        raise UsageError(err.removesuffix("\n").removeprefix("normfree: "))


def refused(read, path) -> bool:
    try:
        read(path)
        return False
    except UsageError as error:
        message = str(error)
    assert message.isprintable()  # and so one line
    assert len(message) < 3000
    return True


def outcomes(path, capsys) -> list[bool]:
    """Whether each way of opening the file refuses it; the two that agree on what they can read come first."""
    readers = [lambda p: load_trained(str(p)), lambda p: open_by_command(p, capsys)]
    if str(path).endswith(".npz"):
        readers = [lambda p: load_haiku(network(), p), lambda p: open_by_command(p, capsys)]
    if str(path).endswith(".pth"):
        readers = [
            lambda p: load_timm(normfree.create_model("timm_test_nfnet", num_classes=10), p),
            lambda p: open_by_command(p, capsys),
        ]
    found = [refused(read, path) for read in readers]
    if str(path).endswith(".safetensors"):
        found.append(refused(lambda p: load_timm(normfree.create_model("timm_test_nfnet", num_classes=10), p), path))
    found.append(refused(lambda p: initialize(network(), str(p)), path))
    return found


TWO = dict(a=entry(), b=entry(offsets=(8, 16)))
MALFORMED = {
    "nothing": b"",
    "seven bytes": b"1234567",
    "empty header": safetensors(b"", length=0),
    "header of 2**63 bytes": safetensors(b"{}", length=2**63),
    "header of 2**64 - 1 bytes": safetensors(b"{}", length=2**64 - 1),
    "header beyond the file": safetensors(TWO, bytes(16), length=10_000),
    "header of 100 MB": safetensors(b"{}", length=10**8),
    "header that ends early": safetensors(TWO, bytes(16), length=20),
    "text": safetensors(b"hello"),
    "a list": safetensors(b"[]"),
    "a number": safetensors(b"3"),
    "no UTF-8": safetensors(b'{"\xff\xfe": {}}'),
    "deep JSON": safetensors(b'{"a":' * 100_000),
    "deep lists": safetensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "negative offset": safetensors(dict(a=entry(offsets=(-8, 0))), bytes(8)),
    "offsets reversed": safetensors(dict(a=entry(offsets=(8, 0))), bytes(8)),
    "offset beyond the file": safetensors(dict(a=entry((HUGE // 4,), (0, HUGE))), bytes(8)),
    "offset of 2**64": safetensors(dict(a=entry(offsets=(0, 2**64))), bytes(8)),
    "offsets that are floats": safetensors(dict(a=entry(offsets=(0.0, 8.0))), bytes(8)),
    "three offsets": safetensors(dict(a=entry(offsets=(0, 8, 8))), bytes(8)),
    "overlap": safetensors(dict(a=entry(), b=entry(offsets=(4, 12))), bytes(12)),
    "the same bytes twice": safetensors(dict(a=entry(), b=entry()), bytes(8)),
    "a hole": safetensors(dict(a=entry(), b=entry(offsets=(16, 24))), bytes(24)),
    "bytes left over": safetensors(dict(a=entry()), bytes(16)),
    "too few bytes": safetensors(dict(a=entry()), bytes(7)),
    "shape of more bytes": safetensors(dict(a=entry((3,))), bytes(8)),
    "shape of fewer bytes": safetensors(dict(a=entry((1,))), bytes(8)),
    "negative shape": safetensors(dict(a=entry((-2,))), bytes(8)),
    "two negative sizes": safetensors(dict(a=entry((-1, -2))), bytes(8)),
    "huge shape": safetensors(dict(a=entry((HUGE,))), bytes(8)),
    "overflowing shape": safetensors(dict(a=entry((2**32, 2**32))), bytes(8)),
    "shape of a float": safetensors(dict(a=entry((2.5,))), bytes(8)),
    "shape of text": safetensors(dict(a=entry(("2",))), bytes(8)),
    "shape of null": safetensors(dict(a=dict(entry(), shape=None)), bytes(8)),
    "unknown dtype": safetensors(dict(a=entry(dtype="F33")), bytes(8)),
    "dtype of a number": safetensors(dict(a=entry(dtype=32)), bytes(8)),
    "no dtype": safetensors(dict(a=dict(shape=[2], data_offsets=[0, 8])), bytes(8)),
    "duplicate keys": safetensors(
        b'{"a":%b,"a":%b}' % (json.dumps(entry()).encode(), json.dumps(entry(offsets=(8, 16))).encode()), bytes(16)
    ),
    "metadata that is a list": safetensors(dict(__metadata__=["normfree"], a=entry()), bytes(8)),
    "metadata that is a number": safetensors(dict(__metadata__=dict(normfree=3), a=entry()), bytes(8)),
    "metadata twice": safetensors(b'{"__metadata__":{"normfree":"{}"},"__metadata__":{"normfree":"[]"}}'),
    "huge shape of nothing": safetensors({"head.fc.weight": entry((HUGE, 0), (0, 0))}),
    "a name with a newline": safetensors({"a\nb": entry()}, bytes(8)),
    "a name of escapes": safetensors({"\x1b[2J": entry()}, bytes(8)),
    "a name of a megabyte": safetensors({"a" * 2**20: entry()}, bytes(8)),
    "a hundred dimensions": safetensors(dict(a=entry((1,) * 99 + (2,))), bytes(8)),
    "no tensors": safetensors({}),
    "a pickle": pickle.dumps(dict(a=1)),
}


def changed(path: str, value) -> dict:
    """The description with a dotted path set; a value of ``...`` deletes it."""
    description = json.loads(json.dumps(DESCRIPTION))
    *sections, name = path.split(".")
    inner = description
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[name] = value
    if value is ...:
        del inner[name]
    return description


HOSTILE = {
    "depths of a billion": ("recipe.model.options.depths", [10**9, 1, 1]),
    "depths of 2**70": ("recipe.model.options.depths", [2**70, 1, 1]),
    "negative depths": ("recipe.model.options.depths", [-(10**9), 10**9, 1]),
    "depths of text": ("recipe.model.options.depths", "999999999"),
    "depths of floats": ("recipe.model.options.depths", [1e9, 1, 1]),
    "depths of lists": ("recipe.model.options.depths", [[1], [1], [1]]),
    "depths of infinity": ("recipe.model.options.depths", [float("inf"), 1, 1]),
    "depths that are true": ("recipe.model.options.depths", True),
    "no depths": ("recipe.model.options.depths", []),
    "widths of terabytes": ("recipe.model.options.widths", [2**20, 2**20, 2**20]),
    "widths that overflow": ("recipe.model.options.widths", [2**62, 2**62, 2**62]),
    "widths of text": ("recipe.model.options.widths", ["16", "16", "32"]),
    "widths of null": ("recipe.model.options.widths", None),
    "widths of zero": ("recipe.model.options.widths", [0, 0, 0]),
    "ratio of nan": ("recipe.model.options.ratio", float("nan")),
    "ratio of 1e300": ("recipe.model.options.ratio", 1e300),
    "no groups": ("recipe.model.options.group_width", 0),
    "activation of code": ("recipe.model.options.activation", "__import__('os').mkdir('canary')"),
    "activation of a class": (
        "recipe.model.options.activation",
        {"class_path": "os.mkdir", "init_args": {"path": "canary"}},
    ),
    "option by class_path": ("recipe.model.options", {"class_path": "os.mkdir", "init_args": {"path": "canary"}}),
    "options of a list": ("recipe.model.options", [1]),
    "options twice": ("recipe.model.options.num_classes", 10**12),
    "unknown option": ("recipe.model.options.x\ny", 1),
    "another model": ("recipe.model.name", "nfnet_f7"),
    "model of a number": ("recipe.model.name", 7),
    "model of a YAML tag": ("recipe.model.name", "!!python/object/apply:os.mkdir [canary]"),
    "model of an object": ("recipe.model", {"class_path": "os.mkdir", "init_args": {"path": "canary"}}),
    "model of text": ("recipe.model", "!!python/object/apply:os.mkdir [canary]"),
    "recipe of a path": ("recipe", "/etc/passwd"),
    "recipe of a list": ("recipe", [RECIPE]),
    "recipe of null": ("recipe", None),
    "no recipe": ("recipe", ...),
    "no classes": ("classes", ...),
    "classes of a number": ("classes", 10),
    "classes of text": ("classes", "0123456789"),
    "classes of numbers": ("classes", list(range(10))),
    "classes of null": ("classes", None),
    "classes of an object": ("classes", {str(i): i for i in range(10)}),
    "eleven classes": ("classes", list("0123456789a")),
    "a million classes": ("classes", ["a"] * 10**6),
    "names of numbers": ("names", list(range(10))),
    "too few names": ("names", ["a"]),
    "names of text": ("names", "0123456789"),
    "images of a terabyte": ("recipe.data.test_size", 10**6),
    "images of 2**70": ("recipe.data.test_size", 2**70),
    "a margin of a terabyte": ("recipe.data.resize_margin", 10**6),
    "size of text": ("recipe.data.test_size", "large"),
    "size of a list": ("recipe.data.test_size", [8]),
    "mean of text": ("recipe.data.mean", "!!python/name:os.system"),
    "mean of objects": ("recipe.data.mean", [{"class_path": "os.mkdir", "init_args": {"path": "canary"}}]),
    "std of zero": ("recipe.data.std", [0]),
    "two channels": ("recipe.data.channels", 2),
    "unknown section": ("recipe.class_path", "os.mkdir"),
    "unknown field": ("recipe.data.sise", 8),
    "long value": ("recipe.data.crop", "x" * 10**6),
    "long field": ("recipe.data." + "x" * 10**6, 1),
    "escapes": ("recipe.data.\x1b[2J\n", 1),
    "decay of text": ("recipe.optim.weight_decay", "much"),
}
