"""Checking the content of an archive of ``torch.export`` before torch opens it.

torch unpickles parts of an archive, evaluates expressions and compiles conditions in its text, and calls functions that
it names. What :func:`.to_archive` writes needs none of that: numbers, names, sums and products of
dimensions, and operators of ``torch.ops.aten``. An archive with anything else is refused.
"""

import contextlib
import json
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..limits import MAX_DESCRIPTION_BYTES

_ENTRIES = re.compile(
    r"archive_format|archive_version|byteorder|version|\.format_version|\.storage_alignment"
    r"|\.data/(version|serialization_id)|models/model\.json|extra/normfree|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
)
_MODEL, _INPUTS = "models/model.json", "data/sample_inputs/model.pt"  # the latter empty
_OPERATOR = re.compile(
    r"torch\.ops\.aten\.(?!from_file)\w+\.\w+|torch\.sym_(max|min|int|float|not|ite|sqrt)|math\.(ceil|floor|trunc)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|and_|or_|eq|ne|lt|le|gt|ge|getitem)"
)
_NAME = re.compile(r"[\w.@+-]{0,1000}")  # of a value, a layer, a device, a version
_SIZE = re.compile(  # of a dimension; without powers, which could be evaluated for ever, and tried in one way alone
    r"(?>Symbol\('[su]\d++'(?>, \w++=True)*+\)|[su]\d++|\d{1,9}+|[ ,+()-]|\*(?!\*)"
    r"|(?>Add|Mul|Integer|FloorDiv|Mod|PythonMod|IntTrueDiv|Max|Min)\(){1,1000}+"
)
_FORMS = {"target": _OPERATOR, "as_operator": _OPERATOR, "expr_str": _SIZE}
_TEXTS = (
    "as_string",
    "as_strings",
)  # arguments of operators, such as einsum's; torch writes them as Python writes text
_MAX_DEPTH = 40  # lists in lists
_UNUSED = {"nn_module_stack", "torch_fn", "stack_trace", "from_node", "custom"}  # torch does not read these values
_TREE = {"type": (None, "builtins.tuple", "builtins.list", "builtins.dict"), "context": (None, "null", "[]")}


def description_in(path: Path) -> str:
    """The description in an archive.

    Raises:
        UsageError: no archive, or it has no description.
    """
    with _opened(path) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename.endswith("/extra/normfree")]
        if not entries:
            raise UsageError(f"{path} does not say how its images are prepared; it was not written by normfree export")
        if (size := entries[0].file_size) > MAX_DESCRIPTION_BYTES:
            raise UsageError(f"{path} describes itself in {size:,} bytes; {MAX_DESCRIPTION_BYTES:,} are the limit")
        return archive.read(entries[0]).decode()


def check_contents(path: Path) -> None:
    """Refuse an archive that holds anything else than :func:`.to_archive` writes.

    Raises:
        UsageError: it does; the message says what.
    """
    with _opened(path) as archive:
        wrong = _foreign_content(archive, path)
    if wrong:
        raise UsageError(f"{path} holds {wrong}, which normfree export does not write; it is not opened")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except UsageError:
        raise
    except Exception as error:  # a damaged archive fails in many ways
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UsageError(f"{path} cannot be read as an archive of torch.export: {reason}") from error


def _foreign_content(archive: zipfile.ZipFile, path: Path) -> str | None:
    """What an archive holds that :func:`.to_archive` does not write, in words; None if there is nothing."""
    entries = archive.infolist()
    root, left = entries[0].filename.partition("/")[0], path.stat().st_size
    names = set[str]()
    if min(entry.header_offset for entry in entries):  # torch would then find other entries than Python does
        return "something in front of its entries"
    for entry in entries:
        folder, _, name = entry.filename.partition("/")
        left -= entry.file_size
        if folder != root or name in names or not _ENTRIES.fullmatch(name):
            return f"an entry {entry.filename[:60]!r}"
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or left < 0:
            return f"an entry of {entry.file_size:,} bytes ({name}) that is compressed"
        names.add(name)
    for entry in entries:
        name = entry.filename.partition("/")[2]
        if name == _INPUTS and entry.file_size:
            return f"an entry of {entry.file_size:,} bytes ({name})"
        if name == _MODEL:
            if not _is_known(json.loads(archive.read(entry))):
                return f"text in {name} that is neither name, size nor operator"
        elif name.endswith("_config.json"):
            sizes = {one.filename.rpartition("/")[2]: one.file_size for one in entries}
            if not all(_is_stored(one, sizes) for one in json.loads(archive.read(entry))["config"].values()):
                return f"numbers in {name} that are not stored as numbers"
    return None


def _is_stored(payload: dict[str, Any], sizes: dict[str, int]) -> bool:
    """Whether a tensor is not pickled, and is in an entry of the archive that is large enough."""
    about = payload["tensor_meta"]
    count = math.prod(size["as_int"] for size in about["sizes"]) if about else -1
    return payload["use_pickle"] is False and 0 <= count <= sizes.get(payload["path_name"], -1)


def _is_known(value: Any, key: str = "", depth: int = 0) -> bool:
    """Whether all text in the JSON of a graph is of a kind that :func:`.to_archive` writes.

    Args:
        key: of the value in its object.
    """
    if depth > _MAX_DEPTH:
        return False
    if isinstance(value, dict):
        if key == "metadata":
            return value.keys() <= _UNUSED
        return all(
            (_NAME.fullmatch(name) or _SIZE.fullmatch(name)) and _is_known(inner, name, depth + 1)
            for name, inner in value.items()
        )
    if isinstance(value, list):
        return (key != "guards_code" or not value) and all(_is_known(inner, key, depth + 1) for inner in value)
    if not isinstance(value, str):
        return True
    if key in ("in_spec", "out_spec"):
        return _is_tree(json.loads(value)[1])
    return key in _TEXTS or bool(_FORMS.get(key, _NAME).fullmatch(value))


def _is_tree(spec: dict[str, Any]) -> bool:
    """Whether the arguments of a network are only in tuples, lists and dicts."""
    known = all(spec[name] in values for name, values in _TREE.items())
    return known and all(map(_is_tree, spec["children_spec"]))
