"""Small files that are large once they are looked at: what a reader hashes, compares, prints or copies without end."""

import struct
from collections.abc import Iterator

import hostile_pickles as pickles
import hostile_torch as torches
from hostile_torch import global_, text

LEVELS = 40


def memoized(levels: int, build: bytes, uses: int) -> bytes:
    """An object in an object in an object, each used several times in the next one."""
    made = b"K\x01\x85"
    for level in range(levels):
        made += b"q" + bytes([level]) + b"0(" + (b"h" + bytes([level])) * uses + build
    return made


NESTED = {
    "doubled": b"K\x01" + b"2\x86" * LEVELS,
    "tripled": memoized(LEVELS, b"t", 3),
    "wide": memoized(6, b"t", 200),
    "different": b"".join([b"K\x01", *(b"2K%c\x87" % level for level in range(LEVELS))]),
    "sets": memoized(LEVELS, b"\x91", 2),
}
NUMBER, NOTHING = b"K\x01", b"N"
HASHED = {
    "key": b"}%bK\x01s",
    "keys": b"}(%bK\x01K\x02K\x03u",
    "key of a dict": b"(%bK\x01d",
    "member": b"\x8f(%b\x90",
    "frozen member": b"(%b\x91",
    "key in a key": b"}(%bK\x02\x86K\x01K\x01K\x02u",
}


def colliding(count: int) -> Iterator[bytes]:
    """Numbers with one hash, which a dict looks up by comparing each with all before."""
    for number in range(1, count + 1):
        value = number * (2**61 - 1)
        yield b"\x8a\x0b" + value.to_bytes(11, "little")


def colliding_pairs(count: int) -> Iterator[bytes]:
    """Pairs of numbers with one hash."""
    first, second, fifth, bits = 11400714785074694791, 14029467366897019727, 2870177450012600261, 2**64
    inverse1, inverse2 = pow(first, -1, bits), pow(second, -1, bits)
    target, number = 12345, 0
    while count:
        number += 1
        lane = (fifth + number * second) % bits
        lane = ((lane << 31 | lane >> 33) % bits) * first % bits
        other = target * inverse1 % bits
        other = (other >> 31 | other << 33) % bits
        other = (other - lane) * inverse2 % bits
        if other < 2**61 - 1:
            count -= 1
            yield b"J%b\x8a\x09%b\x86" % (struct.pack("<i", number), other.to_bytes(9, "little"))


def mapping(keys: Iterator[bytes]) -> bytes:
    return b"}(" + b"".join(key + b"N" for key in keys) + b"u"


def of_pickles() -> dict[str, bytes]:
    """Pickles of ``{module: {name: array}}``."""
    array, parameter = pickles.array, pickles.parameter
    bombs = {}
    for name, bomb in NESTED.items():
        bombs |= {f"{name}, {place}": b"\x80\x04" + form % bomb + b"." for place, form in HASHED.items()}
        bombs[f"{name}, a shape"] = parameter(array(shape=bomb))
        bombs[f"{name}, a dtype"] = parameter(array(kind=bomb))
        bombs[f"{name}, what a dtype is made of"] = parameter(array(kind=pickles.dtype(bomb)))
        bombs[f"{name}, a dtype's order"] = parameter(array(kind=pickles.FLOAT + b"(K\x03" + bomb + b"NNNKKKtb"))
        bombs[f"{name}, numbers"] = parameter(array(data=bomb))
        bombs[f"{name}, a text's coding"] = parameter(
            array(data=pickles.name("_codecs", "encode") + pickles.text("x") + bomb + b"\x86R")
        )
        bombs[f"{name}, itself"] = parameter(bomb)
    megabyte, encode = "x" * 2**20, pickles.name("_codecs", "encode")
    encoded = encode + pickles.text(megabyte) + pickles.text("latin1") + b"\x86q\x010q\x000"
    bombs["numbers that collide"] = b"\x80\x04" + mapping(colliding(60_000)) + b"."
    bombs["pairs that collide"] = b"\x80\x04" + mapping(colliding_pairs(40_000)) + b"."
    bombs["a text encoded 3000 times"] = b"\x80\x04" + encoded + b"](" + (b"h\x00h\x01R") * 3000 + b"e."
    shared = pickles.raw(bytes(2**20))
    first = pickles.text("m") + b"}(" + pickles.text("w")
    shape = b"J" + struct.pack("<i", 2**18) + b"\x85"
    one = array(shape=shape, data=shared + b"q\x07") + b"q\x08"
    others = b"".join(pickles.text(f"w{number}") + b"h\x08" for number in range(3000))
    bombs["an array of 3000 names"] = b"\x80\x04}" + first + one + others + b"us."
    same = array(shape=shape, data=b"h\x07")
    others = b"".join(pickles.text(f"w{number}") + same for number in range(3000))
    bombs["the same bytes in 3000 arrays"] = b"\x80\x04}" + first + one + others + b"us."
    bombs["200,000 axes"] = parameter(array(shape=b"(" + b"\x8a\x08" + b"\xff" * 7 + b"\x7f" + b"2" * 200_000 + b"t"))
    bombs["a name of a megabyte, 3000 times"] = (
        b"\x80\x04" + pickles.text(megabyte) + b"q\x000](" + b"h\x00h\x00\x93" * 3000 + b"e."
    )
    return bombs


def of_torch() -> dict[str, bytes]:
    """Opcodes of a value in the state dict of a file of ``torch.save``."""
    good, bombs = torches.tensor(), {}
    one = b"(" + torches.integer(2) + torches.integer(3) + b"t"
    hooks, rebuild = global_("collections", "OrderedDict"), global_("torch._utils", "_rebuild_tensor_v2")
    assert one in good
    for name, bomb in NESTED.items():
        bombs |= {f"{name}, {place}": form % bomb for place, form in HASHED.items()}
        bombs[f"{name}, a size"] = good.replace(one, bomb, 1)
        bombs[f"{name}, two sizes"] = b"}(" + b"".join(
            text(key) + b"}" + text("w") + good.replace(one, bomb, 1) + b"s" for key in ("model", "net")
        ) + b"u"  # fmt: skip
        bombs[f"{name}, a stride"] = good.replace(b"(" + torches.integer(3) + torches.integer(1) + b"t", bomb, 1)
        bombs[f"{name}, hooks"] = good.replace(hooks + b")R", bomb, 1)
        bombs[f"{name}, pairs"] = hooks + b"](" + bomb + b"N\x86" + b"e\x85R"
        bombs[f"{name}, all a tensor is made of"] = rebuild + bomb + b"R"
        bombs[f"{name}, a reference"] = bomb + b"Q"
        bombs[f"{name}, of an object"] = global_("argparse", "Namespace") + b")R" + bomb + b"b"
        bombs[f"{name}, a tensor as a key"] = b"}" + good.replace(one, bomb, 1) + b"Ns"
    bombs["numbers that collide"] = mapping(colliding(60_000))
    bombs["pairs that collide"] = mapping(colliding_pairs(40_000))
    pairs = b"".join(key + b"N\x86" for key in colliding(60_000))
    bombs["an OrderedDict of numbers that collide"] = hooks + b"](" + pairs + b"e\x85R"
    dicts = b"}q\x00" + b"".join(b"}q%c0" % level for level in range(1, 5))
    for level in range(4):
        items = b"".join(text(f"{number}") + b"h%c" % (level + 1) for number in range(500))
        dicts += b"h%c(" % level + items + b"u0"
    bombs["mappings of one another, 500 times each"] = dicts
    named = text("m" * 2**20) + b"q\x000](" + b"".join(b"h\x00" + text(str(n)) + b"\x93" for n in range(900))
    bombs["900 names of a megabyte"] = named + b"e"
    shared = b"".join(text(f"w{number}") + good for number in range(2000))
    bombs["a storage in 2000 tensors"] = b"}(" + shared + b"u"
    return bombs


def _doubling(first: str, form: str, levels: int = LEVELS) -> str:
    """Lines that each use the one before several times."""
    lines = [f"a0: &a0 {first}"]
    for level in range(levels):
        lines.append(f"a{level + 1}: &a{level + 1} " + form.replace("*", f"*a{level}"))
    return "\n".join(lines) + "\n"


YAML = {
    "lists": _doubling("[x]", "[*, *]"),
    "mappings": _doubling("{x: 1}", "{x: *, y: *}"),
    "pairs": _doubling("!!pairs [x: 1]", "!!pairs [x: *, y: *]"),
    "ordered": _doubling("!!omap [x: 1]", "!!omap [x: *, y: *]"),
    "merged": _doubling("{x: 1}", "{<<: [*, *]}"),
    "merged one by one": _doubling("{x: 1}", "{<<: *, y: *}"),
    "merged in tens": _doubling("{x: 1}", "{<<: [*, *, *, *, *, *, *, *, *, *]}", 9),
    "merged and named": _doubling("{x: 1}", "{<<: [*, *], k: 2}"),
    "a merge of itself": "optim: &a {<<: *a, lr: 1}\n",
    "a merge of what holds it": "optim: &a {lr: &b {<<: *a}}\n",
    "a list of itself": "optim: &a [*a, *a]\n",
    "a key of itself": "optim: &a {? *a : 1}\n",
    "sets": _doubling("!!set {x}", "!!set {x, ? *}"),
    "wide merges": "a: &a {x: 1}\nb: &b {<<: [" + "*a, " * 3000 + "]}\nc: {<<: [" + "*b, " * 3000 + "]}\n",
    "a number of sixties": "optim: {lr: 1" + ":59" * 100_000 + "}\n",
    "digits": "optim: {lr: " + "9" * 1_000_000 + "}\n",
    "hexadecimal digits": "optim: {lr: 0x" + "f" * 1_000_000 + "}\n",
    "binary digits": "optim: {lr: 0b" + "1" * 1_000_000 + "}\n",
    "numbers that collide": "optim: {" + ", ".join(f"{n * (2**61 - 1)}: 1" for n in range(1, 20_000)) + "}\n",
    "brackets": "optim: " + "[" * 100_000,
    "braces": "optim: " + "{a: " * 100_000,
    "dashes": "- " * 100_000,
    "quotes": "optim: '" + "'" * 99_999,
    "five megabytes": "optim: '" + "x" * 5_000_000 + "'",
    "anchors": "".join(f"&a{n} " for n in range(20_000)) + "x",
    "tags": "!!python/object/apply:os.mkdir [canary]",
    "a module": "optim: !!python/module:antigravity ''",
    "a name": "optim: !!python/name:os.mkdir ''",
    "a new object": "optim: !!python/object/new:os.mkdir [canary]",
    "a call in a list": "optim: {lr: [!!python/object/apply:os.system ['mkdir canary']]}",
    "a tuple of tags": "optim: !!python/tuple [!!python/object/apply:os.mkdir [canary]]",
    "a class": "model: {options: {class_path: os.mkdir, init_args: {path: canary}}}",
}
