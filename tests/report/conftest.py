"""A run's files written by hand, and the page about them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from report.pages import Page

from normfree.report import About, Missing, Report, read_run, write_page

RECIPE = "model:\n  name: nf_resnet26_small\noptim:\n  clipping: 0.02\n  lr: 1.0\n"


@pytest.fixture
def folder(tmp_path) -> Path:
    """An empty run folder with a recipe."""
    made = tmp_path / "my run"
    made.mkdir()
    (made / "recipe.yaml").write_text(RECIPE)
    return made


@pytest.fixture
def write(folder) -> Callable[..., Path]:
    """Write a run's lines: ``write(metrics=[...], clipping=[...])``."""

    def lines(**files: list[dict]) -> Path:
        for name, content in files.items():
            text = "".join(json.dumps(line) + "\n" for line in content)
            (folder / f"{name}.jsonl").write_text(text)
        return folder

    return lines


@pytest.fixture
def page(folder) -> Callable[..., Page]:
    """The page of the folder as it is; fields of :class:`About`, or a whole part of the report, by name."""

    def make(**given) -> Page:
        parts = dict(changed={}, recorded=Missing("no network"), examples=Missing("no images"))
        parts |= {name: given.pop(name) for name in list(given) if name in Report.__dataclass_fields__}
        return Page(write_page(Report(read_run(folder), About(**given), **parts)))

    return make
