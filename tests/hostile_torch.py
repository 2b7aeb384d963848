"""Files like those of ``torch.save`` that try what they must not."""

import struct
import zipfile

import torch


def global_(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def integer(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def tensor(numel=6, offset=0, size=(2, 3), stride=(3, 1), storage="FloatStorage", key="0", place="cpu") -> bytes:
    """Opcodes of a tensor as torch.save writes them; without arguments, of a good one."""
    sizes, strides = (b"(" + b"".join(map(integer, numbers)) + b"t" for numbers in (size, stride))
    persistent = b"(" + text("storage") + global_("torch", storage) + text(key) + text(place) + integer(numel) + b"tQ"
    hooks = global_("collections", "OrderedDict") + b")R"
    arguments = b"(" + persistent + integer(offset) + sizes + strides + b"\x89" + hooks + b"t"
    return global_("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def torch_file(path, value: bytes, compression=zipfile.ZIP_STORED, more: bytes = b"") -> None:
    """A file like torch.save's whose state dict has the opcodes ``value`` for "a"."""
    torch.save(dict(a=torch.arange(6.0).view(2, 3)), "template.pth")
    with zipfile.ZipFile("template.pth") as template, zipfile.ZipFile(path, "w", compression) as archive:
        for name in template.namelist():
            content = template.read(name)
            if name.endswith("/data.pkl"):
                content = b"\x80\x02}" + text("a") + value + b"s." + more
            archive.writestr(name, content)


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return global_(module, name) + b"(" + b"".join(arguments) + b"tR"


PYTHON = "__import__('os').mkdir('canary')"
CALLS = {
    "os.system": call("os", "system", text("mkdir canary")),
    "posix.mkdir": call("posix", "mkdir", text("canary")),
    "eval": call("builtins", "eval", text(PYTHON)),
    "exec": call("builtins", "exec", text(PYTHON)),
    "python 2's eval": call("__builtin__", "eval", text(PYTHON)),
    "subprocess": call("subprocess", "check_call", b"](" + text("mkdir") + text("canary") + b"e"),
    "in a tensor": tensor().replace(b"\x89", call("posix", "mkdir", text("canary")), 1),
    "by INST": b"(" + text("canary") + b"iposix\nmkdir\n",
    "by OBJ": b"(" + global_("posix", "mkdir") + text("canary") + b"o",
    "by STACK_GLOBAL": text("posix") + text("mkdir") + b"\x93(" + text("canary") + b"tR",
    "by a partial": b"("
    + call("functools", "partial", global_("posix", "mkdir"), text("canary"))
    + b")R1N".replace(b"1", b""),
}
GREEDY = {
    "bytearray": call("builtins", "bytearray", integer(2**36)),
    "torch.Tensor": call("torch", "Tensor", integer(2**36)),
    "torch.FloatTensor": call("torch", "FloatTensor", integer(2**36)),
    "storage beyond the file": tensor(2**40),
    "tensor beyond its storage": tensor(6, 0, (2**40,), (1,)),
    "one element too many": tensor(7, 0, (7,), (1,)),
    "offset beyond": tensor(6, 2**40),
    "negative offset": tensor(6, -1),
    "negative size": tensor(6, 0, (-2, 3)),
    "negative stride": tensor(6, 5, (6,), (-1,)),
    "negative storage": tensor(-6),
    "a terabyte that is one number": tensor(6, 0, (2**40,), (0,)),
    "other storage": tensor(storage="DoubleStorage"),
    "unknown storage": tensor(storage="ComplexFloatStorage"),
    "no such record": tensor(key="9"),
    "a record outside": tensor(key="../../version"),
    "a sparse tensor": call("torch._utils", "_rebuild_sparse_tensor", b"N"),
    "a meta tensor": call("torch._utils", "_rebuild_meta_tensor_no_storage", b"N"),
    "a storage": b"(" + text("storage") + global_("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x06tQ",
    "a number": b"K\x01",
    "an OrderedDict": global_("collections", "OrderedDict") + b")R",
    "a parameter of a number": call("torch._utils", "_rebuild_parameter", b"K\x01\x89N"),
    "deep lists": b"]" * 100_000,
    "a million lists": b"](" + b"]" * 1_000_000 + b"e",
    "a bomb of lists": b"](K\x01K\x02eq\x01" + b"](h\x01h\x01eq\x01" * 60_000,
    "huge memo": b"}r" + struct.pack("<I", 2**31),
    "memo of nothing": b"h\x07",
    "huge text": b"X" + struct.pack("<I", 2**32 - 1),
    "huge bytes": b"\x8e" + struct.pack("<Q", 2**60),
    "huge frame": b"\x95" + struct.pack("<Q", 2**62),
    "nothing": b"",
    "itself": b"q\x01h\x01",
}
