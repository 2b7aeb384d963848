"""Checkpoints of runs, changed as another version or an editor would write them: with checksums that are right."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from normfree.training.checkpoints import KEY, MANIFEST, STATE


def rewrite_json(checkpoint: Path, manifest: dict[str, Any], state: dict[str, Any]) -> None:
    """Change what the manifest and the state say; None takes an entry out."""
    _write(checkpoint / STATE, state)
    _sum(checkpoint, STATE)
    _write(checkpoint / MANIFEST, manifest)


def rewrite_descriptions(checkpoint: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the description in each file of tensors."""
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            description = json.loads(file.metadata()[KEY])
        change(description)
        save_file(tensors, path, metadata={KEY: json.dumps(description)})
        _sum(checkpoint, path.name)


def remove(checkpoint: Path, name: str) -> None:
    """Take out a file, and its line of the manifest."""
    (checkpoint / name).unlink()
    told = json.loads((checkpoint / MANIFEST).read_text())
    del told["files"][name]
    (checkpoint / MANIFEST).write_text(json.dumps(told))


def _write(path: Path, changes: dict[str, Any]) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def _sum(checkpoint: Path, name: str) -> None:
    content = (checkpoint / name).read_bytes()
    told = json.loads((checkpoint / MANIFEST).read_text())
    told["files"][name] = dict(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    (checkpoint / MANIFEST).write_text(json.dumps(told))
