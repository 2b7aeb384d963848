"""Reading the metadata and the operators of an ONNX file without the package onnx.

An ONNX file is a protobuf message: a sequence of fields, each with a number, a wire type and a content, which may be a
message again. Fields are read in place; no objects are built from them.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import UsageError

MAX_FIELDS = 500_000  # of the messages that are read; the largest network here has 40,000
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# numbers of fields: of a model, a graph, a node, an attribute, an entry of the metadata
GRAPH, METADATA, TRAINING, FUNCTIONS = 7, 14, 20, 25
NODE, OPERATOR, ATTRIBUTE, INNER_GRAPHS = 1, 4, 5, (6, 11)
NAME, VALUE = 1, 2
CONTROL_FLOW = (b"If", b"Loop", b"Scan", b"SequenceMap")


class Field(NamedTuple):
    """A field of a message: its number and wire type, where it begins in the file, and the range of its content."""

    number: int
    kind: int
    begin: int
    start: int
    stop: int


class OnnxFile:
    """An ONNX file, read without building its graph.

    Raises:
        UsageError: it is not an ONNX file.
    """

    def __init__(self, path: Path):
        self.path, self.left = path, MAX_FIELDS
        try:
            with path.open("rb") as file:
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # an empty file
            raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
        self.fields = list(self._fields(0, len(self.data)))

    def metadata(self) -> Iterator[tuple[str, bytes, Field]]:
        """Name, value and field of each entry."""
        for field in self._messages(self.fields, METADATA):
            inside = {one.number: bytes(self.data[one.start : one.stop]) for one in self._inside(field)}
            yield inside.get(NAME, b"").decode(errors="replace"), inside.get(VALUE, b""), field

    def check_operators(self) -> None:
        """Refuse what could run for ever and normfree never writes: control flow, functions, graphs inside nodes."""
        for field in self.fields:
            if field.number in (FUNCTIONS, TRAINING):
                raise self._foreign("functions of its own" if field.number == FUNCTIONS else "a graph for training")
        for graph in self._messages(self.fields, GRAPH):
            for node in self._messages(self._inside(graph), NODE):
                operator, inner = b"?", False
                for field in self._inside(node):
                    if field.number == OPERATOR:
                        operator = bytes(self.data[field.start : field.stop])
                    elif field.number == ATTRIBUTE:
                        inner |= any(one.number in INNER_GRAPHS for one in self._inside(field))
                if inner or operator in CONTROL_FLOW:
                    raise self._foreign(
                        f"the operator {operator[:40].decode(errors='replace')!r} with a graph of its own"
                    )

    def _foreign(self, what: str) -> UsageError:
        return UsageError(f"{self.path} has {what}, which may run for ever; no file of normfree export has it")

    def _messages(self, fields: Iterator[Field] | list[Field], number: int) -> Iterator[Field]:
        return (field for field in fields if field.number == number and field.kind == BYTES)

    def _inside(self, field: Field) -> Iterator[Field]:
        return self._fields(field.start, field.stop) if field.kind == BYTES else iter(())

    def _fields(self, place: int, end: int) -> Iterator[Field]:
        """The fields of the message between two positions."""
        while place < end:
            begin, self.left = place, self.left - 1
            tag, place = self._number(place, end)
            number, kind = tag >> 3, tag & 7
            start, stop = place, place
            if kind == VARINT:
                _, stop = self._number(place, end)
            elif kind == BYTES:
                length, start = self._number(place, end)
                stop = start + length
            elif kind in (FIXED64, FIXED32):
                stop = start + (8 if kind == FIXED64 else 4)
            if kind not in (VARINT, FIXED64, BYTES, FIXED32) or not number or stop > end or self.left < 0:
                why = f"it has more than {MAX_FIELDS:,} parts" if self.left < 0 else f"damaged at byte {begin}"
                raise UsageError(f"{self.path} is no ONNX file that can be used: {why}")
            yield Field(number, kind, begin, start, stop)
            place = stop

    def _number(self, place: int, end: int) -> tuple[int, int]:
        """A number in groups of seven bits (varint), and the position after it."""
        value = 0
        for shift in range(0, 70, 7):
            if place >= end:
                break
            byte = self.data[place]
            place += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, place
        raise UsageError(f"{self.path} is no ONNX file that can be used: damaged at byte {place}")


def entry(name: str, value: str) -> bytes:
    """An entry of a model's metadata as it is in a file, each text below 128 bytes."""
    texts = [bytes([number << 3 | BYTES, len(text)]) + text.encode() for number, text in ((NAME, name), (VALUE, value))]
    return bytes([METADATA << 3 | BYTES, len(b"".join(texts))]) + b"".join(texts)
