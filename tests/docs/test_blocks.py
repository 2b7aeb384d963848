"""Every block of code in the documentation runs as it is written, but for those that say why they do not."""

import contextlib
import io
import os
import re
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest
from doc_pages import ROOT, RUN, Block, blocks, commands, pages_with_code, sessions
from doc_scratch import fill

from normfree.cli import main


@pytest.fixture(scope="session")
def filled(tmp_path_factory) -> Path:
    """What the pages speak of, made once: images, tables, runs."""
    return tmp_path_factory.mktemp("documentation")


@pytest.mark.slow
@pytest.mark.parametrize("name", pages_with_code())
def test_blocks_run_as_written(name, filled, tmp_path, monkeypatch, record_property):
    monkeypatch.chdir(tmp_path)
    page, counts = ROOT / name, Counter()
    fill(filled, tmp_path, page.read_text())
    names: dict = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language not in RUN:
            counts["blocks that hold no code"] += 1
        elif block.not_run:
            counts[f"blocks not run: {block.not_run}"] += 1
        else:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # some blocks say that they warn
                run(block, names)
            counts[f"blocks run: {block.language}"] += 1
    for what, count in counts.items():
        record_property(what, count)


def run(block: Block, names: dict) -> None:
    if block.language == "python":
        code = compile("\n" * (block.line - 1) + block.code, str(block), "exec")
        exec(code, names)
    elif block.language == "bash":
        for words in commands(block.code):
            execute(words, block)
    else:
        for words, printed in sessions(block.code):
            found = execute(words, block)
            assert re.match(pattern(printed), found), f"{block}: {words} printed\n{found}"


def execute(words: list[str], block: Block) -> str:
    """What a command prints; it succeeds."""
    program, *arguments = words
    if program == "pip":  # the extras it names are checked elsewhere
        return ""
    if program == "normfree":
        if arguments[0] == "train":
            arguments += ["--quiet", *block.options]
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main(arguments)
        assert code == 0, f"{block}: {words} ended with {code}\n{out.getvalue()}"
        return out.getvalue()
    assert program == "python", f"{block}: nothing here runs {program}"
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=os.environ)
    assert result.returncode == 0, f"{block}: {words}\n{result.stderr}"
    return result.stdout


def pattern(printed: str) -> str:
    """Numbers differ between machines; ``[...]`` is anything; lines behind the last one may be left out."""
    text = re.escape(printed).replace(r"\[\.\.\.\]", r"(?s:.*)")
    return re.sub(r"(?<![\w{])\d[\d.]*(?:e(?:\\[+-])?\d+)?", r"[-+\\de.]+", text.replace(r"\.", "."))


def test_what_differs_from_the_page_is_noticed():
    page = "a: 16 blocks\n  variance 0.5 at b.0, [...]\n"
    assert re.fullmatch(pattern(page), "a: 15 blocks\n  variance 1.2e-05 at b.0, 3 at b.1\n")
    assert not re.fullmatch(pattern(page), "a: 16 blocks\n  variance 0.5 at c.0, 3\n")
    block = Block(ROOT / "README.md", 1, "bash", "normfree eval nowhere\n")
    with pytest.raises(AssertionError, match=r"README.md:1: .* ended with 2"):
        run(block, {})
