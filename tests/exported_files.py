"""Exported files as other versions wrote them."""

import zipfile
from pathlib import Path

import onnx


def without(path: Path) -> None:
    """The file as earlier versions wrote it."""
    if path.suffix == ".pt2":
        with zipfile.ZipFile(path, "a") as archive:
            archive.comment = b""
        return
    model = onnx.load(path)
    for entry in [entry for entry in model.metadata_props if entry.key.endswith("sha256")]:
        model.metadata_props.remove(entry)
    onnx.save(model, path)
