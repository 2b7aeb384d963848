"""The same command lines by two states of this repository: whether they answer alike.

    python benchmarks/command_lines.py v1 v2                          # any two commits
    python benchmarks/command_lines.py HEAD~1 HEAD --only "predict" --only "convert"

Each commit is checked out into a folder of its own. The command lines of command_lines.txt run there one after the
other among the same small inputs, each in a process of its own, which has the libraries that normfree uses imported,
so that it takes no time. What differs is printed: exit code, standard output, standard error, and the names and
contents of the files that were written; pictures by their pixels, weights by their tensors. Dates, times, speeds,
versions and the folders' own paths count for nothing. Exit code 1: something differs.
"""

import argparse
import atexit
import contextlib
import difflib
import hashlib
import importlib
import io
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import string
import sys
import tempfile
import threading
import traceback
import zipfile
from dataclasses import dataclass
from pathlib import Path

from commits import checked_out

SET = Path(__file__).with_name("command_lines.txt")
SECONDS = 300  # that a command line may take
FIXED = dict(
    COLUMNS="100", TZ="UTC", OMP_NUM_THREADS="1", MPLBACKEND="Agg", CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1"
)
LIBRARIES = ("torch", "torchvision", "timm", "matplotlib.pyplot", "sklearn.datasets", "jsonargparse", "torchmetrics")
SPEED = '"images_per_s": 100.0, "seconds_left": 0.0'
TEXTS = {".json", ".jsonl", ".yaml", ".csv", ".txt", ".md", ".html", ".svg"}
PICTURES = {".png", ".jpg", ".gif"}
NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?"

# what may differ between two runs of the same command: a pattern, and what stands in its place
NOISE = [
    (r"[^\n]*\r(?=[^\n])", ""),  # of a progress bar, its last state
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?", "DATE"),
    (r"\d\d:\d\d<(\d\d:\d\d|\?)", "TIME"),
    (rf'("(?:images_per_s|seconds_left|seconds)": ?){NUMBER}', r"\1#"),
    # the last of each step's numbers is its seconds
    (r'"recent": \[\[.*?\]\]', lambda found: re.sub(rf"{NUMBER}(?=\])", "#", found[0])),
    (r'"bytes": \d+', '"bytes": #'),  # a manifest's, of files that are compared themselves
    (r'"sha256": "[0-9a-f]{64}"', '"sha256": #'),
    (rf"(?<![\w.]){NUMBER} ?(s|ms|min|h|seconds?|minutes?|hours?|[a-zA-Z]+/s|s/[a-z]+)\b", r"# \1"),
    (r"\b\d+\.\d+\.\d+([.+]\w+)*", "VERSION"),
]


def lines(text: str) -> dict[str, str]:
    """The command lines as they stand in a set's text, and with the names in them replaced by what they stand for."""
    names: dict[str, str] = {}
    found = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        named = re.fullmatch(r"([A-Z]+) = (.*)", line)
        words = string.Template(named[2] if named else line).substitute(names)
        if named:
            names[named[1]] = words
        else:
            found[line] = words
    return found


def made_by(line: str) -> str | None:
    """The file or folder that a command line writes, where later ones read it."""
    words = shlex.split(line)
    if words[0] == "convert":
        return next((word for word in words[2:] if not word.startswith("--")), None)
    return words[words.index("--out") + 1] if "--out" in words else None


def chosen(every: dict[str, str], only: list[str] | None) -> tuple[list[str], set[str]]:
    """The command lines to run, and those among them to compare: of ``only``, and what makes their inputs."""
    asked = {line for line in every if not only or any(part in line for part in only)}
    needed, order = set(asked), list(every)
    for place in reversed(range(len(order))):
        if order[place] in needed:
            words = shlex.split(every[order[place]])
            for before in order[:place]:
                made = made_by(every[before])
                if made and any(word == made or word.startswith(f"{made}/") for word in words):
                    needed.add(before)
    return [line for line in order if line in needed], asked


def normalized(text: str, places: dict[str, str] | None = None) -> str:
    """A text without what may differ between two runs; ``places`` are paths and the words for them."""
    for path, word in (places or {}).items():
        text = text.replace(path, word)
    for pattern, instead in NOISE:
        text = re.sub(pattern, instead, text)
    return text


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def described(name: str, content: bytes, places: dict[str, str] | None = None) -> str:
    """A file's content as text to compare."""
    ending = Path(name).suffix
    if ending in PICTURES:
        from PIL import Image

        with contextlib.suppress(OSError), Image.open(io.BytesIO(content)) as picture:
            return f"{picture.mode} {picture.size} {sha(picture.tobytes())}"
    if ending == ".safetensors":
        length = int.from_bytes(content[:8], "little")
        header = json.dumps(json.loads(content[8 : 8 + length]), indent=1)
        return f"{normalized(header, places)}\n{sha(content[8 + length :])}"
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = [(entry, described(entry, archive.read(entry), places)) for entry in archive.namelist()]
        return "\n".join(f"{entry}: {said}" for entry, said in entries)
    if ending in TEXTS:
        return described_text(content.decode("utf-8", "replace"), places)
    return sha(normalized(content.decode("latin-1"), places).encode())


def described_text(text: str, places: dict[str, str] | None) -> str:
    """A text file, one tag or field to a line; pictures inside it by the hash of their bytes."""
    text = re.sub(r', (?=")', ",\n", text) if text.startswith("{") else text
    text = re.sub(r"base64,([\w+/=]+)", lambda found: f"base64 {sha(found[1].encode())}", text)
    return normalized(re.sub(r">\s*<", ">\n<", text), places)


@dataclass
class Answer:
    """What a command line gave: named parts, each as text."""

    parts: dict[str, str]

    def difference(self, other: "Answer", limit: int) -> list[str]:
        """Unified diffs of the parts that differ."""
        told = []
        for part in dict.fromkeys([*self.parts, *other.parts]):
            before, after = self.parts.get(part), other.parts.get(part)
            if before is None or after is None:
                told.append(f"    {part}: written {'after' if before is None else 'before'} alone")
            elif before != after:
                diff = list(difflib.unified_diff(before.splitlines(), after.splitlines(), part, part, n=1, lineterm=""))
                told += [f"    {line[:220]}" for line in diff[:limit]]
                if len(diff) > limit:
                    told.append(f"    ... {len(diff) - limit} more lines")
        return told


class Side:
    """A commit, checked out, and the folder in which its command lines run."""

    def __init__(self, source: Path, folder: Path, inputs: Path):
        shutil.copytree(inputs, folder / "in")
        (folder / "out").mkdir()
        self.source, self.folder, self.places = source, folder, {str(folder): "FOLDER", str(source): "SOURCE"}
        self.process, self.said = 0, [folder.with_name(f"{folder.name}.{name}") for name in ("out", "err")]
        self.files = self._files()

    def start(self, line: str) -> None:
        """Run a command line in a process of its own: a copy of this one, which has all but normfree imported."""
        assert "normfree" not in sys.modules
        sys.stdout.flush()
        self.process = os.fork()
        if self.process == 0:
            code = 70
            try:
                atexit._clear()
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                signal.alarm(SECONDS)
                os.chdir(self.folder)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                for number, path in enumerate(self.said, start=1):
                    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
                code = run_module(self.source / "src", shlex.split(line))
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)

    def answer(self, line: str) -> Answer:
        """Wait for the end of the command line that was started, and gather what it gave."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        out, err = (normalized(path.read_bytes().decode("utf-8", "replace"), self.places) for path in self.said)
        if line.startswith("bench "):  # a table of times
            out = re.sub(rf"(?<=\| ){NUMBER}( to {NUMBER})?", "#", out)
        parts = {"exit code": str(code), "standard output": out, "standard error": err}
        self._forget_speeds()
        before, self.files = self.files, self._files()
        for name in sorted(before.keys() - self.files.keys()):
            parts[name] = "deleted"
        for name in sorted(self.files):
            if self.files[name] != before.get(name):
                parts[name] = described(name, (self.folder / name).read_bytes(), self.places)
        return Answer(parts)

    def _forget_speeds(self) -> None:
        """Replace the speeds that runs have logged, since reports draw them."""
        for path in self.folder.rglob("metrics.jsonl"):
            text = path.read_text()
            steady = re.sub(rf'"images_per_s": {NUMBER}, "seconds_left": {NUMBER}', SPEED, text)
            if steady != text:
                path.write_text(steady)

    def _files(self) -> dict[str, tuple[int, int]]:
        """Time and size of each file by its name."""
        found = (path for path in self.folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return {str(path.relative_to(self.folder)): (path.stat().st_mtime_ns, path.stat().st_size) for path in found}


def run_module(source: Path, words: list[str]) -> int:
    """As `python -m normfree WORDS`; returns the exit code."""
    sys.path[:0] = ["", str(source)]
    sys.argv = ["normfree", *words]
    code: object = 0
    try:
        runpy.run_module("normfree", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    return code if isinstance(code, int) else 1


def compare(sides: list[Side], run: dict[str, str], asked: set[str], limit: int) -> int:
    """Run the command lines on both sides; tell the differences, and return how many command lines have some."""
    different = 0
    for line, words in run.items():
        for side in sides:
            side.start(words)
        before, after = (side.answer(words) for side in sides)
        told = before.difference(after, limit) if line in asked else []
        different += bool(told)
        word = "DIFFERS" if told else "same   " if line in asked else "input  "
        print(f"{word} exit {before.parts['exit code']}, {len(before.parts) - 3} files: normfree {line}")
        print(*told, sep="\n", end="\n" if told else "", flush=True)
    return different


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", help="a commit")
    parser.add_argument("after", help="another one")
    parser.add_argument("--only", action="append", metavar="TEXT", help="command lines that contain this; repeatable")
    parser.add_argument("--lines", type=int, default=30, help="of the difference of each part; default: 30")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="a new folder for the files that are written")
    options = parser.parse_args()
    os.environ |= FIXED
    for name in LIBRARIES:
        importlib.import_module(name)
    sys.modules["matplotlib"].rcParams["svg.hashsalt"] = "the same"  # or names inside SVG files are random
    from command_inputs import make

    every = lines(SET.read_text())
    run, asked = chosen(every, options.only)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the checked-out folders are removed
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        make(folder / "in")
        work = (options.keep or folder / "work").resolve()
        sides = []
        for name, commit in (("before", options.before), ("after_", options.after)):  # of one length, for wrapped lines
            source = stack.enter_context(checked_out(commit, folder / f"source_{name}"))
            sides.append(Side(source, work / name, folder / "in"))
        different = compare(sides, {line: every[line] for line in run}, asked, options.lines)
    print(f"\n{different} of {len(asked)} command lines differ between {options.before} and {options.after}")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
