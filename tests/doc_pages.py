"""Markdown as the tests of the documentation see it: blocks of code, commands, inline code, links, anchors.

An HTML comment directly above a block says how it is treated: ``<!-- not run: REASON -->``, or
``<!-- shortened: OPTIONS -->``, options that each ``normfree train`` of the block gets in addition.
"""

import json
import re
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "tests/golden/README.md"])
RUN = {"python", "bash", "console"}
MARK = re.compile(r"<!-- (not run|shortened): (.+) -->")


@dataclass
class Block:
    """A fenced block of code; ``line`` is that of its first line of code."""

    page: Path
    line: int
    language: str
    code: str
    not_run: str = ""
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    found, lines, at = [], page.read_text().splitlines(), 0
    while at < len(lines):
        opened = re.fullmatch(r"```(\w*)", lines[at])
        if opened:
            end = lines.index("```", at + 1)
            block = Block(page, at + 2, opened[1], "\n".join(lines[at + 1 : end]) + "\n")
            if mark := MARK.fullmatch(lines[at - 1] if at else ""):
                if mark[1] == "not run":
                    block.not_run = mark[2]
                else:
                    block.options = tuple(shlex.split(mark[2]))
            found.append(block)
            at = end
        at += 1
    return found


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def inline(page: Path) -> list[str]:
    """Texts between backticks."""
    return [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", prose(page))]


def commands(code: str) -> list[list[str]]:
    """The commands of a shell's block, continued lines joined, comments and empty lines left out."""
    split = (shlex.split(line, comments=True) for line in code.replace("\\\n", " ").splitlines())
    return [words for words in split if words]


def sessions(code: str) -> list[tuple[list[str], str]]:
    """Each command of a terminal's session with what it prints."""
    parts = re.split(r"^\$ (.*)\n", code, flags=re.MULTILINE)
    assert parts[0] == "", code
    return [(shlex.split(command), out) for command, out in zip(parts[1::2], parts[2::2], strict=True)]


def calls(words: list[str]) -> list[str]:
    """What follows ``normfree`` in a command, however it is started; empty if it is another program's."""
    for at, word in enumerate(words):
        if word == "normfree" and (at == 0 or words[at - 1] == "-m"):
            return words[at + 1 :]
    return []


def notebook_script(file: Path) -> str:
    """The code of a notebook as a Python program; ``!normfree ...`` becomes a process."""
    lines = ["import shlex, subprocess, sys"]
    for cell in json.loads(file.read_text())["cells"]:
        if cell["cell_type"] == "code":
            lines += "".join(cell["source"]).splitlines()
    called = "subprocess.run([sys.executable, '-m', *shlex.split({!r})], check=True)"
    return "\n".join(called.format(line[1:]) if line.startswith("!") else line for line in lines) + "\n"


def anchors(page: Path) -> set[str]:
    """GitHub's names of the headings."""
    found: Counter[str] = Counter()
    names = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if found[name] else name)
        found[name] += 1
    return names


class Tally:
    """pytest's plugin: how many blocks ran, over all processes of the tests."""

    def pytest_terminal_summary(self, terminalreporter) -> None:
        counts: Counter[str] = Counter()
        for report in terminalreporter.stats.get("passed", []):
            counts.update({name: n for name, n in report.user_properties if name.startswith("blocks ")})
        if counts:
            said = ", ".join(f"{n} {name.removeprefix('blocks ')}" for name, n in sorted(counts.items()))
            terminalreporter.write_line(f"blocks of the documentation: {said}", bold=True)


def pages_with_code() -> list:
    """Pages as parameters of a test; those that take more than seconds are left to the rest of the cases."""
    quick = {"README.md", *(f"docs/{name}.md" for name in ("augmentation", "clipping"))}
    names = [str(page.relative_to(ROOT)) for page in PAGES if any(b.language in RUN for b in blocks(page))]
    return [name if name in quick else pytest.param(name, marks=pytest.mark.full) for name in names]
