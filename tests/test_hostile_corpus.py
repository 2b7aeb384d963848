"""Every hostile file, read: refused in one line or survived, in bounded time and memory, and nothing of it is run.

Each is read in a process of its own (hostile_readers.py), so that a crash, a hang and a folder that was made are that
file's. A whole run reads all of them; by default a sample of each reader but those of exported files, which
tests/export looks at.
"""

import contextlib
import hashlib
import json
import math
import os
import pickle
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import hostile_corpus
import hostile_readers
import pytest
import selection
import tiny_runs
import torch
import yaml

from normfree.export import Preprocessing, to_archive, to_onnx

VIEW = Preprocessing(8, 1, (0.5,), (0.5,), 0)  # of the tiny network
SAMPLE, LEAST = 45, 500
MEGABYTES = 500
SECONDS = 10  # of the processor. That nothing takes for ever is what is said here: the slowest was measured at 1.3


def good_files(folder: Path) -> dict[str, bytes]:
    """Exported files by their ending."""
    torch.manual_seed(0)
    network = tiny_runs.network(drop_rate=0.0, stochdepth_rate=0.0).eval()
    for ending, write in (("pt2", to_archive), ("onnx", to_onnx)):
        write(network, folder / f"good.{ending}", preprocessing=VIEW, classes=list("abcdefghij"), name="mine")
    return {path.suffix[1:]: path.read_bytes() for path in folder.iterdir()}


def sampled(cases: hostile_corpus.Cases) -> hostile_corpus.Cases:
    """Some of each reader's, always the same ones."""
    by_reader = defaultdict(list)
    for case in cases:
        by_reader[case[0]].append(case)
    chosen = []
    for some in by_reader.values():
        some.sort(key=lambda case: hashlib.sha256(repr(case).encode()).hexdigest())
        chosen += some[: math.ceil(SAMPLE * len(some) / len(cases))]
    return {case: cases[case] for case in chosen}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """What became of each file: reader, name, outcome, seconds, megabytes, and what was made by it."""
    root, work = tmp_path_factory.mktemp("hostile"), tmp_path_factory.mktemp("work")
    cases = hostile_corpus.cases(good_files(tmp_path_factory.mktemp("good")) if selection.whole() else {})
    cases = cases if selection.whole() else sampled(cases)
    names = {}
    for number, ((reader, name), write) in enumerate(cases.items()):
        folder = root / reader / f"{number:04}"
        folder.mkdir(parents=True)
        write(folder)
        names[folder.name] = name
    command = [sys.executable, hostile_readers.__file__, str(root), str(work)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | dict(OMP_NUM_THREADS="1"))
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(cases), done.stderr
    return [line | dict(name=names[line["name"]]) for line in lines]


def told(lines: list[dict]) -> str:
    """For a message: which files."""
    return "\n".join(
        f"{one['reader']}, {one['name']}: {one['seconds']:.1f} s, {one['megabytes']:.0f} MB, {one['ran']}: "
        f"{one['outcome'][-600:]}"
        for one in lines
    )


@pytest.mark.scaled
def test_each_is_refused_in_one_line_or_read(found):
    wrong = [one for one in found if not one["outcome"].startswith(("read", "refused: "))]
    assert not wrong, told(wrong)
    assert Counter(one["outcome"][:4] for one in found)["refu"] > len(found) // 2


@pytest.mark.scaled
def test_nothing_of_a_file_is_run(found):
    wrong = [one for one in found if one["ran"]]
    assert not wrong, told(wrong)


@pytest.mark.scaled
def test_time_and_memory_are_bounded(found):
    wrong = [one for one in found if one["seconds"] > SECONDS or one["megabytes"] > MEGABYTES]
    assert not wrong, told(wrong)


@pytest.mark.full
def test_there_are_files_for_each_reader(found):
    counts = Counter(one["reader"] for one in found)
    assert counts.keys() == hostile_readers.READERS.keys()
    assert sum(counts.values()) >= LEAST
    assert min(counts.values()) >= 10


@pytest.mark.parametrize("reader", ["pickle", "yaml"])
def test_what_is_planted_is_live(tmp_path, monkeypatch, reader):
    """A careless reader would obey: the canary is there to be made."""
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(Exception):
        if reader == "pickle":
            pickle.loads(dict(hostile_corpus.pickled())["os.mkdir at the top"])
        else:
            yaml.unsafe_load(dict(hostile_corpus.yaml_texts())["a call in a list"])
    assert (tmp_path / hostile_corpus.CANARY).is_dir()
