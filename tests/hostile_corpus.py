"""Every hostile file there is, for every reader: how each is written. Whoever runs them is hostile_readers.py."""

import functools
import io
import json
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import hostile_bombs as bombs
import hostile_pickles as pickles
import hostile_torch as torches
import hostile_weights as weights
import numpy as np
import torch
from hostile_data import cases as of_data
from hostile_images import Cases, Write, file, mutated

CANARY = "canary"


def _torch_pickle(value: bytes) -> bytes:
    return b"\x80\x02}" + torches.text("a") + value + b"s."


def _torch_zip(value: bytes) -> bytes:
    """As ``torch.save`` writes it, with 24 bytes of numbers."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, content in (
            ("data.pkl", _torch_pickle(value)),
            ("byteorder", b"little"),
            ("data/0", bytes(24)),
            ("version", b"3\n"),
        ):
            archive.writestr(f"archive/{name}", content)
    return held.getvalue()


def _legacy(value: bytes) -> bytes:
    """As torch before 1.6 wrote it."""
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, dict(little_endian=True))]
    return b"".join([*parts, _torch_pickle(value), pickle.dumps(["0"], 2), struct.pack("<q", 6), bytes(24)])


def pickled() -> Iterator[tuple[str, bytes]]:
    yield from pickles.calls(CANARY).items()
    yield from pickles.malformed().items()
    yield from bombs.of_pickles().items()
    whole = pickle.dumps({"m": {"w": np.ones(9, np.float32), "b": np.zeros((2, 3))}}, 2)
    yield from ((f"damage {number}", mutated(whole, number)) for number in range(14))


def torch_values() -> Iterator[tuple[str, bytes]]:
    yield from torches.CALLS.items()
    yield from torches.GREEDY.items()
    yield from bombs.of_torch().items()


def zipped() -> Iterator[tuple[str, bytes]]:
    whole = _torch_zip(torches.tensor())
    yield from ((f"damage {number}", mutated(whole, number)) for number in range(14))
    yield from ((f"damage at the end {number}", mutated(whole[::-1], number)[::-1]) for number in range(14))
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", _torch_pickle(torches.tensor()) + bytes(10**8))
    yield "100 MB that are 100 kB", held.getvalue()
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("archive/data.pkl", _torch_pickle(torches.tensor()))
        for number in range(20_000):
            archive.writestr(f"archive/data/{number}", b"")
    yield "20,000 entries", held.getvalue()


def described() -> Iterator[tuple[str, bytes]]:
    """Safetensors files, and what they say about their network."""
    yield from weights.MALFORMED.items()
    one = dict(a=weights.entry())
    deep = '{"recipe": ' + "[" * 900 + "]" * 900 + "}"
    texts = {name: json.dumps(weights.changed(*how)) for name, how in weights.HOSTILE.items()}
    texts |= {
        "deep": deep,
        "digits": '{"recipe": ' + "9" * 100_000 + "}",
        "a list": "[1]",
        "text": "!!python/name:os.mkdir",
    }
    texts["500,000 values"] = json.dumps(dict(recipe=dict(model=dict(options=dict(a=[[]] * 500_000))), classes=["a"]))
    for name, text in texts.items():
        yield f"describes {name}", weights.safetensors(dict(__metadata__=dict(normfree=text), **one), bytes(8))


def yaml_texts() -> Iterator[tuple[str, str]]:
    yield from bombs.YAML.items()
    whole = b"model: {name: nf_resnet26_small}\noptim:\n  lr: 0.1\n  clipping: null\ntrain: {steps: 3}\n"
    for number in range(14):
        yield f"damage {number}", mutated(whole, number).decode("latin1")


# what a run leaves


def _run(name: str, content: bytes) -> Write:
    def write(folder: Path) -> None:
        file("recipe.yaml", b"model: {name: nf_resnet26_small}\n")(folder)
        file("metrics.jsonl", b'{"kind": "train", "step": 1, "loss": 2.0}\n')(folder)
        file(name, content)(folder)

    return write


def runs() -> Iterator[tuple[str, Write]]:
    texts = {
        "deep": b"[" * 100_000,
        "deep mappings": b'{"a":' * 100_000,
        "digits": b'{"step": ' + b"9" * 100_000 + b"}",
        "a huge step": b'{"step": %b, "kind": "train"}' % (b"9" * 4000),
        "infinity": b'{"kind": "train", "step": 1, "loss": Infinity, "lr": -1e400}',
        "lists": b'{"kind": "eval", "step": 1, "top1": [[[]]], "layers": {"a": [[]]}}',
        "no UTF-8": b"\xff\xfe\x00" * 99,
        "one long line": b'"' + b"x" * 10**6,
        "100,000 lines": b"{}\n" * 100_000,
        "nothing": b"",
        "null": b"null",
        "a pickle": pickles.calls(CANARY)["os.mkdir at the top"],
    }
    for name in ("metrics.jsonl", "environment.json", "clipping.jsonl", "spp.jsonl", "held_out.json"):
        for what, content in texts.items():
            yield f"{name}: {what}", _run(name, content)


# exported files


class Mkdir:
    """Pickles as a call."""

    def __reduce__(self):
        return os.mkdir, (CANARY,)


def changed_zip(
    content: bytes, change: Callable[[str, bytes], bytes | None], more: dict[str, bytes], packing: int = 0
) -> bytes:
    """An archive with other entries: ``change`` gets each one's name without its folder."""
    held = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as whole, zipfile.ZipFile(held, "w", packing) as made:
        root = whole.namelist()[0].partition("/")[0]
        for name in whole.namelist():
            new = change(name.partition("/")[2], whole.read(name))
            if new is not None:
                made.writestr(name, new)
        for name, one in more.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a name that is there twice
                made.writestr(f"{root}/{name}", one)
    return held.getvalue()


def _json(path: str, value: object) -> Callable[[bytes], bytes]:
    """JSON with a dotted path set; a part ``*`` is every one."""

    def set_in(inner, way: list[str]) -> None:
        part, *rest = way
        keys = list(inner if isinstance(inner, dict) else range(len(inner))) if part == "*" else [part]
        for key in keys:
            key = int(key) if isinstance(inner, list) else key
            if rest:
                set_in(inner[key], rest)
            else:
                inner[key] = value

    def change(content: bytes) -> bytes:
        told = json.loads(content)
        set_in(told, path.split("."))
        return json.dumps(told).encode()

    return change


DESCRIBED = {
    "4096 px": ("preprocessing.size", 4096),
    "10**6 px": ("preprocessing.size", 10**6),
    "2**70 px": ("preprocessing.size", 2**70),
    "no px": ("preprocessing.size", 0),
    "px of text": ("preprocessing.size", "8"),
    "px that are true": ("preprocessing.size", True),
    "a margin of 10**9": ("preprocessing.resize_margin", 10**9),
    "a margin of 4000": ("preprocessing.resize_margin", 4000),
    "10**6 channels": ("preprocessing.channels", 10**6),
    "3 channels": ("preprocessing.channels", 3),
    "batch 10**7": ("batch", 10**7),
    "batch 4096": ("batch", 4096),
    "batch 0": ("batch", 0),
    "batch of text": ("batch", "3"),
    "mean of nan": ("preprocessing.mean", [float("nan")]),
    "std of zero": ("preprocessing.std", [0]),
    "a mean of 10**400": ("preprocessing.mean", [10**400]),
    "a million means": ("preprocessing.mean", [0.5] * 10**6),
    "resize of a list": ("preprocessing.resize", ["squash"]),
    "resize of code": ("preprocessing.resize", "__import__('os')"),
    "short side of 10**6": ("preprocessing.short_side", 10**6),
    "a range of infinity": ("preprocessing.value_range", [0, float("inf")]),
    "a million classes": ("classes", ["a"] * 10**6),
    "classes of a number": ("classes", 3),
    "classes of escapes": ("classes", ["\x1b[2J\n"] * 10),
    "a shape of 10**9": ("shape", [10**9]),
    "a shape of text": ("shape", "10"),
    "another task": ("task", "os.mkdir"),
    "a task of depth": ("task", "depth"),
    "targets of a list": ("targets", [1]),
    "a deep model": ("model", json.loads("[" * 900 + "]" * 900)),
    "another format": ("format", 2**70),
    "unknown fields": ("class_path", "os.mkdir"),
}


def exported_archives(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Of a good one."""

    def one(name: str, change: Callable[[bytes], bytes]) -> bytes:
        return changed_zip(content, lambda entry, old: change(old) if entry == name else old, {})

    for name, how in DESCRIBED.items():
        yield f"describes {name}", one("extra/normfree", _json(*how))
    yield from ((f"damage {number}", mutated(content, number)) for number in range(14))
    yield from ((f"damage at the end {number}", mutated(content[::-1], number)[::-1]) for number in range(14))
    call, model = pickle.dumps(Mkdir()), "models/model.json"
    code = f"__import__('os').mkdir('{CANARY}')"
    held = io.BytesIO()
    torch.save(Mkdir(), held)
    keep = lambda name, old: old  # noqa: E731
    more = {
        "weights of a pickle": {"data/weights/model.pt": held.getvalue()},
        "constants of a pickle": {"data/constants/model.pt": held.getvalue()},
        "a custom object": {"data/constants/custom_obj_0": call},
        "a library": {"data/aotinductor/model/a.so": b"\x7fELF", "data/aotinductor/model/a.wrapper.so": b"\x7fELF"},
        "weights of another kind": {"data/weights/weight_config.json": b"{}"},
        "another model": {"models/other.json": b"{}"},
        "a second description": {"extra/normfree": b"{}"},
        "an entry that climbs": {"../../canary": b""},
    }
    for name, entries in more.items():
        yield name, changed_zip(content, keep, entries)
    yield "inputs of a pickle", one("data/sample_inputs/model.pt", lambda _: held.getvalue())
    for kind in ("weights", "constants"):
        config = f"data/{kind}/model_{kind}_config.json"
        pickled = json.dumps(
            dict(config=dict(a=dict(path_name="opaque_obj_0", is_param=False, use_pickle=True, tensor_meta=None)))
        )
        yield (
            f"{kind} that say they are pickles",
            changed_zip(
                content,
                lambda name, old, c=config, p=pickled: p.encode() if name == c else old,
                {f"data/{kind}/opaque_obj_0": call},
            ),
        )
    weights_config = "data/weights/model_weights_config.json"
    yield "weights in pickles", one(weights_config, _json("config.*.use_pickle", True))
    yield "weights elsewhere", one(weights_config, _json("config.*.path_name", "../../../etc/passwd"))
    size = [dict(as_int=2**40)]
    yield "weights of 2**40", one(weights_config, _json("config.*.tensor_meta.sizes", size))
    values = {
        "guards of code": ("guards_code", [code]),
        "a range of code": ("range_constraints", {code: dict(min_val=0, max_val=9)}),
        "a target of code": ("graph_module.graph.nodes.*.target", "torch.ops.aten.mul.Tensor.__class__.__base__"),
        "a target of torch.load": ("graph_module.graph.nodes.*.target", "torch.load"),
        "metadata of a module": (
            "graph_module.graph.nodes.*.metadata",
            dict(source_fn_stack=f"a,torch.os.mkdir;{code},b"),
        ),
        "a tree of code": ("graph_module.treespec_namedtuple_fields", {code: dict(field_names=[code])}),
        "a version of 2**60": ("schema_version.major", 2**60),
        "a deep graph": ("graph_module.graph.outputs", json.loads("[" * 800 + "]" * 800)),
    }
    for name, how in values.items():
        yield name, one(model, _json(*how))
    text = one(model, lambda old: _expressions(old, code))
    yield "expressions of code", text
    yield "expressions of digits", one(model, lambda old: _expressions(old, "1" * 300 + "!"))
    yield (
        "expressions of powers",
        one(model, lambda old: _expressions(old, "Pow(Integer(9), Pow(Integer(9), Integer(9)))")),
    )
    yield "an enumeration of a module", one(model, lambda old: old.replace(b"builtins.tuple", b"antigravity.tuple"))
    yield "a million brackets", one(model, lambda _: b"[" * 10**6)
    yield (
        "100 MB that are 100 kB",
        changed_zip(content, keep, {"data/weights/weight_999": bytes(10**8)}, zipfile.ZIP_DEFLATED),
    )
    yield (
        "a description of 70 MB",
        changed_zip(
            content,
            lambda name, old: old + b" " * (70 * 2**20) if name == "extra/normfree" else old,
            {},
            zipfile.ZIP_DEFLATED,
        ),
    )
    yield "nothing", b""
    yield "a file of torch.save", held.getvalue()


def _expressions(content: bytes, code: str) -> bytes:
    """The text of each expression in a graph replaced."""

    def walk(value):
        if isinstance(value, dict):
            return {key: code if key == "expr_str" else walk(inner) for key, inner in value.items()}
        return [walk(inner) for inner in value] if isinstance(value, list) else value

    return json.dumps(walk(json.loads(content))).encode()


def exported_onnx(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Of a good one."""
    import onnx
    from onnx import TensorProto, helper

    def changed(change: Callable[[onnx.ModelProto], None]) -> bytes:
        model = onnx.load_from_string(content)
        about = [entry for entry in model.metadata_props if entry.key == "normfree"]  # without its checksum
        del model.metadata_props[:]
        model.metadata_props.extend(about)
        change(model)
        return model.SerializeToString()

    def described(how: Callable[[bytes], bytes]) -> bytes:
        def change(model: onnx.ModelProto) -> None:
            for entry in model.metadata_props:
                if entry.key == "normfree":
                    entry.value = how(entry.value.encode()).decode("utf-8", "ignore")

        return changed(change)

    for name, how in DESCRIBED.items():
        yield f"describes {name}", described(_json(*how))
    yield "describes nothing", described(lambda _: b"")
    yield "describes brackets", described(lambda _: b"[" * 100_000)
    yield from ((f"damage {number}", mutated(content, number)) for number in range(14))
    yield from ((f"damage within {number}", content[:2000] + mutated(content[2000:], number)) for number in range(14))

    def greedy(kind: str) -> Callable[[onnx.ModelProto], None]:
        """Before the answer, numbers that are made of a few bytes are added to it."""

        def change(model: onnx.ModelProto) -> None:
            graph = model.graph
            shape = helper.make_tensor("bomb_shape", TensorProto.INT64, [2], [2**20, 2**20])
            graph.initializer.append(shape)
            if kind == "Expand":
                graph.initializer.append(helper.make_tensor("bomb_one", TensorProto.FLOAT, [1], [1.0]))
                graph.node.append(helper.make_node("Expand", ["bomb_one", "bomb_shape"], ["bomb"]))
            else:
                graph.node.append(helper.make_node("ConstantOfShape", ["bomb_shape"], ["bomb"]))
            graph.node.append(helper.make_node("ReduceSum", ["bomb"], ["bomb_sum"], keepdims=0))
            answer = graph.output[0].name
            for node in graph.node:
                for place, name in enumerate(node.output):
                    if name == answer:
                        node.output[place] = "bomb_answer"
            graph.node.append(helper.make_node("Add", ["bomb_answer", "bomb_sum"], [answer]))

        return change

    for kind in ("Expand", "ConstantOfShape"):
        yield f"{kind} to 2**40", changed(greedy(kind))

    def elsewhere(model: onnx.ModelProto) -> None:
        weight = max(model.graph.initializer, key=lambda one: len(one.raw_data))
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "../../../../../etc/passwd"), ("offset", "0"), ("length", "2000")):
            entry = weight.external_data.add()
            entry.key, entry.value = key, value

    def shaped(*sides) -> Callable[[onnx.ModelProto], None]:
        def change(model: onnx.ModelProto) -> None:
            for place, side in zip(model.graph.input[0].type.tensor_type.shape.dim, sides, strict=False):
                place.dim_value = side

        return change

    def another(model: onnx.ModelProto) -> None:
        model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [1]))

    def custom(model: onnx.ModelProto) -> None:
        model.graph.node[0].op_type = "PyOp"
        model.graph.node[0].domain = "ai.onnx.contrib"

    yield "weights elsewhere", changed(elsewhere)
    yield "images of another size", changed(shaped(2, 1, 4096, 4096))
    yield "two inputs", changed(another)
    yield "an operator of others", changed(custom)
    yield "no nodes", changed(lambda model: model.graph.ClearField("node"))
    yield "no description", changed(lambda model: model.ClearField("metadata_props"))
    yield "nothing", b""
    yield "zeros", bytes(100_000)
    yield "a length of 2**63", b"\x0a" + b"\xff" * 9 + b"\x7f"


def cases(exported: dict[str, bytes]) -> Cases:
    """By reader and name.

    Args:
        exported: good files to be changed, by ending: "onnx", "pt2".
    """
    found: Cases = {}
    found |= {("pickle", name): file("w.npz", content) for name, content in pickled()}
    for name, value in torch_values():
        found["torch", name] = file("w.pth", functools.partial(_torch_zip, value))
    for name, value in bombs.of_torch().items():
        found["torch before 1.6", name] = file("w.pth", functools.partial(_legacy, value))
    found |= {("torch", f"archive: {name}"): file("w.pth", content) for name, content in zipped()}
    found |= {("safetensors", name): file("w.safetensors", content) for name, content in described()}
    found |= {("yaml", name): file("r.yaml", text.encode()) for name, text in yaml_texts()}
    found |= {("run", name): write for name, write in runs()}
    for ending, some in (("pt2", exported_archives), ("onnx", exported_onnx)):
        if ending in exported:
            found |= {(ending, name): file(f"m.{ending}", content) for name, content in some(exported[ending])}
    return found | of_data()
