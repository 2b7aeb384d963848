"""Pickles that try what they must not: bytes that a careless reader would obey."""

import builtins
import os
import pickle
import struct
import subprocess


class Call:
    """Pickles as a call: reading it runs ``function(*args)``."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def raw(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def name(module: str, attribute: str) -> bytes:
    """Opcode for a global, such as a function to call."""
    return f"c{module}\n{attribute}\n".encode()


def stack_name(module: str, attribute: str) -> bytes:
    """The same as protocol 4 writes it: dots in the attribute are followed."""
    return text(module) + text(attribute) + b"\x93"


def parameter(value: bytes) -> bytes:
    """A pickle of ``{"m": {"w": value}}`` for the opcodes of a value."""
    return b"\x80\x04}" + text("m") + b"}" + text("w") + value + b"ss."


RECONSTRUCT = (
    name("numpy.core.multiarray", "_reconstruct") + b"(" + name("numpy", "ndarray") + b"K\x00\x85" + raw(b"b") + b"tR"
)
FLOAT = name("numpy", "dtype") + b"(" + text("f4") + b"\x89\x88tR"
TWO = b"K\x02\x85"  # the shape (2,)
DATA = raw(bytes(8))  # of two floats


def dtype(spec: bytes) -> bytes:
    return name("numpy", "dtype") + b"(" + spec + b"\x89\x88tR"


def array(shape: bytes = TWO, kind: bytes = FLOAT, data: bytes = DATA, order: bytes = b"\x89") -> bytes:
    """Opcodes of a float array; without arguments, of a good one."""
    return RECONSTRUCT + b"(K\x01" + shape + kind + order + data + b"tb"


def calls(canary: str) -> dict[str, bytes]:
    """Pickles that create the folder ``canary`` in a reader that calls what they name."""
    code = f"__import__('os').mkdir({canary!r})"
    mkdir = name("os", "mkdir") + text(canary) + b"\x85R"
    import_os = name("builtins", "__import__") + text("os") + b"\x85R"
    found = name("builtins", "getattr") + import_os + text("mkdir") + b"\x86R"
    method = name("operator", "methodcaller") + text("mkdir") + text(canary) + b"\x86R"
    corpus = {
        "os.system": pickle.dumps({"m": {"w": Call(os.system, f"mkdir {canary}")}}),
        "os.mkdir at the top": pickle.dumps(Call(os.mkdir, canary)),
        "module is a call": pickle.dumps({"m": Call(os.mkdir, canary)}),
        "key is a call": b"\x80\x04}" + mkdir + b"}s.",
        "eval": pickle.dumps({"m": {"w": Call(builtins.eval, code)}}),
        "exec": pickle.dumps({"m": {"w": Call(builtins.exec, code)}}),
        "subprocess": pickle.dumps({"m": {"w": Call(subprocess.check_call, ["mkdir", canary])}}),
        "partial": parameter(b"(" + name("functools", "partial") + name("os", "mkdir") + text(canary) + b"\x86R)R1N"),
        "getattr of an import": parameter(found + text(canary) + b"\x85R"),
        "method of an import": parameter(method + import_os + b"\x85R"),
        "dotted name": parameter(stack_name("numpy", "f2py.os.mkdir") + text(canary) + b"\x85R"),
        "INST": parameter(b"(" + text(canary) + b"ios\nmkdir\n"),
        "OBJ": parameter(b"(" + name("os", "mkdir") + text(canary) + b"o"),
        "in an array's shape": parameter(array(shape=mkdir)),
        "in an array's dtype": parameter(array(kind=mkdir)),
        "in an array's data": parameter(array(data=b"]" + mkdir + b"a")),
        "in an array's order": parameter(array(order=mkdir)),
        "in a dtype's state": parameter(array(kind=FLOAT + b"(K\x03" + text("<") + mkdir + b"NNJ\xff\xff\xff\xffKKtb")),
        "numpy's own exec": parameter(name("numpy.testing", "runstring") + b"(" + text(code) + b"}tR"),
    }
    corpus |= {f"protocol {p}": pickle.dumps({"m": {"w": Call(os.mkdir, canary)}}, protocol=p) for p in range(6)}
    return corpus


def malformed() -> dict[str, bytes]:
    """Pickles that name no function, but abuse numpy's names or the machine itself."""
    ndarray, reconstruct = name("numpy", "ndarray"), name("numpy.core.multiarray", "_reconstruct")
    scalar, encode = name("numpy.core.multiarray", "scalar"), name("_codecs", "encode")
    buffer = name("numpy.core.numeric", "_frombuffer")
    huge = b"\x8a\x09" + (2**64).to_bytes(9, "little")
    state = b"}" + text("fill") + b"K\x01s"  # {"fill": 1}
    values = {
        "ndarray called": ndarray + TWO + b"\x85R",
        "ndarray by NEWOBJ": ndarray + TWO + b"\x85\x81",
        "ndarray by NEWOBJ_EX": ndarray + TWO + b"\x85}\x92",
        "ndarray by OBJ": b"(" + ndarray + TWO + b"o",
        "ndarray itself": ndarray,
        "array without state": RECONSTRUCT,
        "array with a short state": RECONSTRUCT + b"K\x01\x85b",
        "array with a dict as state": RECONSTRUCT + state + b"b",
        "BUILD on a stand-in": reconstruct + state + b"b",
        "slots of a stand-in": reconstruct + b"N}" + text("__code__") + b"Ns\x86b",
        "slots of an array": RECONSTRUCT + b"N}" + text("value") + b"K\x01s\x86b",
        "BUILD on a dtype with nothing": array(kind=FLOAT + b")b"),
        "APPEND to an array": RECONSTRUCT + b"K\x01a",
        "SETITEM of an array": RECONSTRUCT + b"K\x01K\x01s",
        "ADDITEMS to an array": RECONSTRUCT + b"(K\x01\x90",
        "object array": array(kind=dtype(text("O8")), data=b"](K\x01K\x02e"),
        "object scalar": scalar + dtype(text("O8")) + b"K\x01\x86R",
        "void": array(kind=dtype(text("V4"))),
        "record": array(kind=dtype(text("f2,f2"))),
        "subarray": array(kind=dtype(text("(1,)f4"))),
        "string": array(kind=dtype(text("S4"))),
        "date": array(kind=dtype(text("M8[s]")), shape=b"K\x01\x85"),
        "complex": array(kind=dtype(text("c8")), shape=b"K\x01\x85"),
        "fields as dtype": array(kind=dtype(b"]" + text("x") + text("f4") + b"\x86a")),
        "long dtype": array(kind=dtype(text("f4" + " " * 99))),
        "unknown dtype": array(kind=dtype(text("zz"))),
        "None as dtype": array(kind=b"N"),
        "text as data": array(data=text("x" * 8)),
        "list as data": array(data=b"](K\x01K\x02e"),
        "too little data": array(data=raw(bytes(7))),
        "too much data": array(data=raw(bytes(9))),
        "huge shape": array(shape=huge + b"\x85"),
        "huge shape of nothing": array(shape=huge + b"K\x00\x86", data=raw(b"")),
        "overflowing shape": array(shape=(b"\x8a\x05" + (2**32).to_bytes(5, "little")) * 2 + b"\x86"),
        "negative shape": array(shape=b"J\xfe\xff\xff\xff\x85"),
        "two negative sizes": array(shape=b"J\xff\xff\xff\xffJ\xfe\xff\xff\xff\x86"),
        "float shape": array(shape=b"G" + struct.pack(">d", 2.0) + b"\x85"),
        "bool shape": array(shape=b"K\x02\x88\x86"),
        "list as shape": array(shape=b"]K\x02a"),
        "number as shape": array(shape=b"K\x02"),
        "100 dimensions": array(shape=b"(" + b"K\x01" * 99 + b"K\x02t"),
        "buffer of text": buffer + b"(" + text("x" * 8) + FLOAT + TWO + text("C") + b"tR",
        "buffer of wrong size": buffer + b"(" + DATA + FLOAT + b"K\x03\x85" + text("C") + b"tR",
        "other codec": array(data=encode + text("x" * 8) + text("rot13") + b"\x86R"),
        "codec of bytes": array(data=encode + DATA + text("latin1") + b"\x86R"),
        "text beyond latin1": array(data=encode + text("\u20ac" * 8) + text("latin1") + b"\x86R"),
        "OrderedDict": name("collections", "OrderedDict") + b")R",
        "class of another module": name("torch", "Tensor") + b")R",
        "name of nothing": stack_name("", ""),
        "private name of numpy": stack_name("numpy.core", "multiarray.scalar.__globals__"),
        "class of a stand-in": stack_name("numpy.core.multiarray", "_reconstruct.__class__"),
        "persistent id": b"P1\n",
        "binary persistent id": b"K\x01Q",
        "EXT1": b"\x82\xf1",
        "EXT2": b"\x83\xf1\xf1",
        "EXT4": b"\x84\xf1\xf1\xf1\x00",
        "memo of nothing": b"h\x07",
        "huge memo of nothing": b"j\xff\xff\xff\xff",
        "out-of-band buffer": b"\x97",
        "a number": b"K\x01",
        "a list of arrays": b"]" + array() + b"a",
        "itself": b"}\x940" + b"h\x00",
    }
    return {key: parameter(value) for key, value in values.items()} | {
        "nothing": b"",
        "no pickle": b"PK\x03\x04 no pickle",
        "only the end": b".",
        "newer protocol": b"\x80\x09}.",
        "empty stack": b"\x80\x04R.",
        "list at the top": b"\x80\x04].",
        "array at the top": b"\x80\x04" + array() + b".",
        "number as module": b"\x80\x04}K\x01}s.",
        "tuple as module": b"\x80\x04})}s.",
        "array as module": b"\x80\x04}" + text("m") + array() + b"s.",
        "number as name": b"\x80\x04}" + text("m") + b"}K\x01" + array() + b"ss.",
        "mapping that holds itself": b"\x80\x04}\x94" + text("m") + b"h\x00s.",
        "huge bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**60),
        "huge bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**60),
        "huge text": b"\x80\x04\x8d" + struct.pack("<Q", 2**60),
        "huge frame": b"\x80\x04\x95" + struct.pack("<Q", 2**63 - 1),
        "huge integer": b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1),
        "integer of negative length": b"\x80\x04\x8b" + struct.pack("<i", -1),
        "long decimal": b"L" + b"9" * 100_000 + b"L\n.",
    }
