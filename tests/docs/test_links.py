"""Links, names and options in the documentation are there."""

import contextlib
import importlib
import io
import re
from functools import cache

import pytest
from doc_pages import PAGES, ROOT, Block, anchors, blocks, calls, commands, inline, prose, sessions

from normfree.cli import main
from normfree.cli.main import VERBS

ids = [str(page.relative_to(ROOT)) for page in PAGES]
every_page = pytest.mark.parametrize("page", PAGES, ids=ids)
OTHERS = {"--max-restarts", "--help"}  # torchrun's, everyone's


@cache
def options_of(*verb: str) -> frozenset[str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*verb, "--help"])
    return frozenset(re.findall(r"(?<![\w-])--[a-z][\w.-]*", out.getvalue())) | {"--help"}


@cache
def options_of_scripts() -> frozenset[str]:
    files = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "examples").glob("*.py")]
    return frozenset(option for file in files for option in re.findall(r'"(--[a-z][a-z0-9-]*)"', file.read_text()))


def known(option: str, options: frozenset[str]) -> bool:
    """``--model.options.widths`` is a part of ``--model.options``."""
    return any(option == other or option.startswith(f"{other}.") for other in options)


def check(words: list[str], where: object) -> None:
    """A command line of ours: its verb, its options and its recipe exist."""
    verb = words[0]
    assert verb in VERBS or verb == "VERB", f"{where}: normfree {verb}"
    options = options_of(*words[: 2 if verb == "bench" and len(words) > 1 else 1])
    if verb == "convert":
        options |= {"--model.options", "--data"}
    for word in words[1:]:
        if word.startswith("--"):
            assert known(word.partition("=")[0], options), f"{where}: normfree {verb} has no option {word}"
    if "--recipe" in words:
        recipe = words[words.index("--recipe") + 1]
        named = (ROOT / f"src/normfree/recipes/{recipe}.yaml").exists()
        assert named or recipe.endswith(".yaml") or recipe.isupper(), f"{where}: no recipe {recipe}"


def command_lines(block: Block) -> list[list[str]]:
    if block.language == "console":
        return [words for words, _ in sessions(block.code)]
    return commands(block.code) if block.language == "bash" else []


@every_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        other = (page.parent / file).resolve() if file else page
        assert other.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(other), f"{page.name}: {target}"


@every_page
def test_lines_are_at_most_200_characters_long(page):
    for number, line in enumerate(page.read_text().splitlines(), 1):
        assert len(line) <= 200, f"{page.name}:{number}"


@every_page
def test_code_is_fenced_and_names_its_language(page):
    for block in blocks(page):
        assert block.language in {"python", "bash", "console", "text", "json", "yaml"}, str(block)
    indented = re.findall(r"^\n {4}(?![ \-*]).*", re.sub(r"^ *[-*\d].*(\n .*)*", "", prose(page), flags=re.M), re.M)
    assert not indented, f"{page.name}: {indented}"


@every_page
def test_commands_have_their_verbs_and_options(page):
    for block in blocks(page):
        for words in command_lines(block):
            if ours := calls(words):
                check(ours, block)
    for text in inline(page):
        if text.startswith("normfree "):
            check(text.split()[1:], page.name)
        elif text.startswith("--"):
            option = re.split(r"[ =]", text)[0]
            bench = (options_of("bench", what) for what in ("step", "tables", "scaling"))
            every = frozenset().union(*map(options_of, VERBS), *bench, options_of_scripts(), OTHERS)
            assert known(option, every), f"{page.name}: nothing has the option {option}"


@every_page
def test_files_targets_and_names_exist(page):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    made = [words[1:] for block in blocks(page) for words in command_lines(block) if words[0] == "make"]
    made += [text.split()[1:] for text in inline(page) if re.fullmatch(r"make( [\w-]+)+", text)]
    assert not {target for words in made for target in words} - {*targets}, page.name
    for text in inline(page):
        if page.name != "CHANGELOG.md" and re.fullmatch(r"(tests|src|benchmarks|examples|docs)/[\w/.-]+", text):
            assert (ROOT / text).exists(), f"{page.name}: {text}"
        if re.fullmatch(r"normfree(\.\w+)+", text) and not text.endswith(".sha256"):  # an entry of a file
            assert resolves(text), f"{page.name}: {text}"
        if re.fullmatch(r"(data|train|optim|task|model)\.(?!txt|py)[a-z]\w+", text):
            assert known(f"--{text}", options_of("train")) or resolves(f"normfree.{text}"), f"{page.name}: {text}"


def resolves(name: str) -> bool:
    """Whether Python finds a module or what is in one."""
    module, _, last = name.rpartition(".")
    try:
        importlib.import_module(name)
    except ImportError:
        return bool(module) and resolves(module) and hasattr(importlib.import_module(module), last)
    return True


def test_extras_that_are_named_exist():
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    for page in PAGES:
        for named in re.findall(r"(?:normfree|\.)\[([\w,]+)\]", page.read_text()):
            assert {*named.split(",")} <= extras, f"{page.name}: {named}"


def test_the_design_names_every_room_and_files_that_are_there():
    rows = re.findall(r"^\| (`.*`) \| .* \| (.*) \|$", (ROOT / "docs/design.md").read_text(), re.MULTILINE)
    source, named = ROOT / "src/normfree", set()
    for rooms, files in rows:
        named |= {room.strip("`/") for room in rooms.split(", ")}
        for file in filter(None, files.split(", ")):
            inside = source / rooms.strip("`/") if len(rooms.split(", ")) == 1 and rooms.endswith("/`") else source
            assert (inside / file.strip("`")).exists(), f"{rooms}: {file}"
    there = {path.name for path in source.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert named == there - {"__init__.py", "__main__.py", "version.py"}
