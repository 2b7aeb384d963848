"""Reading the files of a run, also of a killed one (the last line is incomplete) or an old one (files are missing)."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import regular
from .axes import MAX_VALUE

RECIPE, METRICS, ENVIRONMENT = "recipe.yaml", "metrics.jsonl", "environment.json"
CLIPPING, FILM = "clipping.jsonl", "spp.jsonl"
Line = dict[str, Any]


@dataclass
class RunFiles:
    """The text files of a run's folder.

    Attributes:
        recipe: text of recipe.yaml; empty if there is none.
        train, evals, skipped: lines of metrics.jsonl by their kind, steps rising.
        end: its last line, if that says how the run ended.
        clipping, film: lines of clipping.jsonl and of spp.jsonl, steps rising.
        environment: names and texts.
        written: time of the last line, in seconds since 1970.
        notes: what could not be read, one sentence each.
    """

    folder: Path
    recipe: str = ""
    train: list[Line] = field(default_factory=list)
    evals: list[Line] = field(default_factory=list)
    skipped: list[Line] = field(default_factory=list)
    end: Line | None = None
    clipping: list[Line] = field(default_factory=list)
    film: list[Line] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    written: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def step(self) -> int:
        """The number of optimizer steps according to the logged lines."""
        return max((lines[-1]["step"] for lines in (self.train, self.evals) if lines), default=0)


def read_run(folder: str | os.PathLike[str]) -> RunFiles:
    """Read a run's folder.

    Raises:
        UsageError: it is not a run folder: it has neither recipe.yaml nor metrics.jsonl.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in (RECIPE, METRICS)):
        raise UsageError(f"{folder} is no run folder: it has neither {RECIPE} nor {METRICS}")
    run = RunFiles(folder)
    run.recipe = _text(run, RECIPE) or ""
    lines = _lines(run, METRICS)
    run.train, run.evals, run.skipped = (
        _rising([line for line in lines if line.get("kind") == kind]) for kind in ("train", "eval", "skipped")
    )
    run.end = lines[-1] if lines and lines[-1].get("kind") == "end" else None
    if lines:
        run.written = (folder / METRICS).stat().st_mtime
    if (folder / CLIPPING).exists():
        run.clipping = _rising([line for line in _lines(run, CLIPPING) if isinstance(line.get("layers"), dict)])
    if (folder / FILM).exists():
        run.film = _rising(_lines(run, FILM))
    if (folder / ENVIRONMENT).exists():
        try:
            content = json.loads(_text(run, ENVIRONMENT) or "{}")
            run.environment = {str(name): _plain(value) for name, value in content.items()}
        except (ValueError, AttributeError, RecursionError):
            run.notes.append(f"{ENVIRONMENT} is damaged")
    return run


def value(line: Mapping[str, Any], name: str) -> float | None:
    """A number of a line by its name; None if it is missing or not a number."""
    number = line.get(name)
    if isinstance(number, bool) or not isinstance(number, int | float):
        return None
    if abs(number) > MAX_VALUE:  # an integer may be larger than any float
        return math.inf if number > 0 else -math.inf
    return float(number)


def curve(lines: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """(step, value) of every line that has a number of that name."""
    return [(line["step"], number) for line in lines if (number := value(line, name)) is not None]


def _text(run: RunFiles, name: str) -> str | None:
    try:
        return regular(run.folder / name).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        run.notes.append(f"{name} is not there")
    except OSError as error:
        run.notes.append(f"{name} cannot be read: {error.strerror or error}")
    return None


def _lines(run: RunFiles, name: str) -> list[Line]:
    """The lines that are JSON objects with a step; a note says which others were left out."""
    lines, bad = [], []
    for number, text in enumerate((_text(run, name) or "").split("\n"), start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict) and type(line.get("step")) is int and 0 <= line["step"] < 2**53:
            lines.append(line)
        else:
            bad.append(number)
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        run.notes.append(f"{name}: line {bad[0]}{more} cannot be read and is left out")
    return lines


def _rising(lines: Sequence[Line]) -> list[Line]:
    """Lines by increasing step: a resumed run logs steps again, and its later lines replace the earlier ones."""
    kept: list[Line] = []
    for line in lines:
        while kept and kept[-1]["step"] >= line["step"]:
            kept.pop()
        kept.append(line)
    return kept


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
