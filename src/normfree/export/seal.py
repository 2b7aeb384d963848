"""Checksums of exported files, which tell whether a file is unchanged.

An ONNX file ends with an entry of its metadata, "normfree.sha256": the checksum of all bytes before it. If the
weights are in a second file, the entry before it, "normfree.data.sha256", is the checksum of that file. An archive has
the checksum of all bytes before the zip file's comment in this comment. A checksum detects damage and mistakes, but no
attacks: whoever changes a file on purpose can change its checksum.
"""

import hashlib
import os
from pathlib import Path

from ..errors import UsageError
from .protobuf import OnnxFile, entry

ONNX_KEY, DATA_KEY = "normfree.sha256", "normfree.data.sha256"
COMMENT = b"normfree sha256 "  # and 64 hexadecimal digits
END, RECORD, MAX_COMMENT = b"PK\5\6", 22, 2**16  # a zip file's last record: signature, bytes, bytes of a comment
CHUNK = 1 << 22


def seal(path: str | os.PathLike[str]) -> None:
    """Write the checksum of an exported file again, after a change on purpose, for example by a quantizer.

    >>> import zipfile
    >>> path = Path(tempfile.mkdtemp()) / "model.pt2"
    >>> with zipfile.ZipFile(path, "w") as archive:
    ...     archive.writestr("version", "1")
    >>> seal(path)
    >>> sealed(path)
    True

    Raises:
        UsageError: neither an ONNX file nor a zip file; it cannot be written.
    """
    path = Path(path)
    try:
        if path.suffix == ".onnx":
            _seal_onnx(path)
        else:
            _seal_zip(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be sealed: {error.strerror or error}") from error


def sealed(path: Path, onnx: OnnxFile | None = None) -> bool:
    """Whether a file has a checksum; a wrong one is an error.

    Args:
        onnx: the file, where it is one.

    Raises:
        UsageError: the checksum is wrong: the file was changed.
    """
    try:
        return _sealed_zip(path) if onnx is None else _sealed_onnx(path, onnx)
    except OSError as error:
        raise UsageError(f"{error.filename or path} cannot be read: {error.strerror or error}") from error


def data_file(path: Path) -> Path:
    """The second file of an ONNX file, for weights that are too large for one."""
    return path.with_name(path.name + ".data")


def _seal_onnx(path: Path) -> None:
    onnx = OnnxFile(path)
    old = [(field.begin, field.stop) for name, _, field in onnx.metadata() if name in (ONNX_KEY, DATA_KEY)]
    kept, place = [], 0
    for begin, stop in [*old, (len(onnx.data), 0)]:
        kept.append((place, begin))
        place = stop
    part, digest = path.with_name(path.name + ".part"), hashlib.sha256()
    try:
        with part.open("wb") as file:

            def write(content: bytes) -> None:
                digest.update(content)
                file.write(content)

            for begin, stop in kept:
                for start in range(begin, stop, CHUNK):
                    write(onnx.data[start : min(stop, start + CHUNK)])
            if data_file(path).is_file():
                write(entry(DATA_KEY, _digest(data_file(path))))
            file.write(entry(ONNX_KEY, digest.hexdigest()))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _sealed_onnx(path: Path, onnx: OnnxFile) -> bool:
    entries = [(name, value, field) for name, value, field in onnx.metadata() if name in (ONNX_KEY, DATA_KEY)]
    if not any(name == ONNX_KEY for name, _, _ in entries):
        return False
    name, value, field = entries[-1]
    if name != ONNX_KEY or field.stop != len(onnx.data) or value.decode(errors="replace") != _digest(path, field.begin):
        raise _changed(path)
    for name, value, _ in entries[:-1]:
        if name != DATA_KEY or value.decode(errors="replace") != _digest(data_file(path)):
            raise _changed(data_file(path) if name == DATA_KEY else path)
    return True


def _seal_zip(path: Path) -> None:
    body, comment = _parts(path)
    if body is None or (comment and not comment.startswith(COMMENT)):
        raise UsageError(f"{path} is no zip file, or one with a comment of its own")
    with path.open("r+b") as file:
        comment = COMMENT + _digest(path, body).encode()
        file.truncate(body)
        file.seek(body)
        file.write(len(comment).to_bytes(2, "little") + comment)


def _sealed_zip(path: Path) -> bool:
    body, comment = _parts(path)
    if body is None or not comment.startswith(COMMENT):
        return False
    if comment != COMMENT + _digest(path, body).encode():
        raise _changed(path)
    return True


def _parts(path: Path) -> tuple[int | None, bytes]:
    """The bytes of a zip file before the length of its comment, and the comment; None for other files.

    Raises:
        UsageError: the file ends within its comment.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - RECORD - MAX_COMMENT)
        file.seek(start)
        tail = file.read()
    place = tail.rfind(END)
    if place < 0 or len(tail) < place + RECORD:
        return None, b""
    length, comment = int.from_bytes(tail[place + RECORD - 2 : place + RECORD], "little"), tail[place + RECORD :]
    if length != len(comment):
        raise _changed(path)
    return start + place + RECORD - 2, comment


def _digest(path: Path, length: int | None = None) -> str:
    """The checksum of a file, or of its first ``length`` bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size if length is None else length
        while left > 0 and (chunk := file.read(min(CHUNK, left))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


def _changed(path: Path) -> UsageError:
    return UsageError(
        f"{path} is not as it was written: its checksum is another one. Export it again; if it was changed on purpose, "
        "normfree.export.seal(path) gives it a new one"
    )
