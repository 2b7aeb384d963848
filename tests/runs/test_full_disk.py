"""A run on a small file system that fills up: one line, the last checkpoint kept, and the same command goes on."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import selection
from killed_runs import Kind, Runs, Server, ended, same

SPACE, INODES, QUOTAS = 40, 12, 8  # so many sizes in the whole; two by default
NOBODY = 65534


@pytest.fixture(scope="module")
def mounting() -> Iterator[Server]:
    """A server whose mounts nobody else sees."""
    if not sys.platform.startswith("linux") or shutil.which("unshare") is None:
        pytest.skip("no mount namespaces here")
    server = Server("unshare", "-m" if os.geteuid() == 0 else "-rm", "--propagation", "private")
    try:
        allowed = "failed" not in server(commands=[["mount", "-t", "tmpfs", "tmpfs", "/mnt"]])
    except (ValueError, BrokenPipeError):  # unshare was refused, and the server never began
        allowed = False
    if not allowed:
        pytest.skip("mounting is not allowed here")
    yield server
    server.close()


@pytest.fixture(scope="module")
def runs(mounting, photos_folder, tmp_path_factory) -> Runs:
    return Runs(Kind(), mounting, tmp_path_factory.mktemp("runs"), photos_folder)


def some(sizes: list) -> list:
    return sizes if selection.whole() else sizes[:: -(-len(sizes) // 2)]


def goes_on(runs: Runs, name: str, options: str, said: str, user: int | None = None) -> int:
    """The exit code on a file system with ``options``; on one without them, the same command ends as it should."""
    place, out = runs.scratch / name, runs.scratch / name / "run"
    place.mkdir()
    commands = [["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]]
    who = {} if user is None else dict(user=user)
    log = str(runs.scratch / f"{name}.log")
    first = runs.run(out, None, commands=commands, log=log, **who)
    assert "failed" not in first, first
    (code,) = first["codes"]
    text = Path(log).read_text()
    assert "Traceback" not in text
    kept = None
    if code:
        (line,) = [line for line in text.splitlines() if line.startswith("normfree: ")]
        assert said in line
        kept = re.search(r"the checkpoint of step (\d+) is kept in ", line)
    moved = str(runs.scratch / f"{name} moved")
    larger = [["cp", "-a", str(place), moved], ["umount", str(place)], ["mount", "-t", "tmpfs", "tmpfs", str(place)]]
    again = runs.run(out, None, commands=[*larger, ["cp", "-a", f"{moved}/.", str(place)]], log=log)
    text = Path(log).read_text()
    assert again["codes"] == [0], text
    assert kept is None or f"goes on after step {kept[1]} of 4" in text
    copy = runs.scratch / f"{name} copied"
    assert runs.server(commands=[["cp", "-a", str(out), str(copy)], ["umount", str(place)]]) == {}
    same(runs.expected, ended(copy))
    return code


@pytest.mark.slow
@pytest.mark.scaled
def test_no_space(runs):
    used = sum(path.stat().st_size for path in (runs.scratch / "whole").rglob("*") if path.is_file())
    sizes = [used * (number + 1) // (SPACE + 1) // 1024 for number in range(SPACE)]
    said = "No space left on device"
    codes = [goes_on(runs, f"{size} KB", f"size={size}k", said) for size in some(sizes)]
    assert all(code in (1, 2) for code in codes[: len(codes) // 2])
    assert set(codes) <= {0, 1, 2}


@pytest.mark.slow
@pytest.mark.scaled
def test_no_inodes(runs):
    count = len(list((runs.scratch / "whole").rglob("*")))
    numbers = [2 + number * count // INODES for number in range(INODES)]
    said = "No space left on device"
    codes = [goes_on(runs, f"{n} inodes", f"nr_inodes={n}", said) for n in some(numbers)]
    assert codes[0] in (1, 2)


@pytest.mark.slow
def test_read_only(runs):
    place = runs.scratch / "read only"
    place.mkdir()
    commands = [["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(place)]]
    log = str(runs.scratch / "read only.log")
    assert runs.run(place / "run", None, commands=commands, log=log)["codes"] == [2]
    (line,) = Path(log).read_text().splitlines()
    assert line == f"normfree: --out {place / 'run'} cannot be made: Read-only file system"
    again = runs.run(place / "run", None, commands=[["mount", "-o", "remount,rw", str(place)]], log=log)
    assert again["codes"] == [0]


@pytest.mark.slow
@pytest.mark.scaled
@pytest.mark.skipif(os.geteuid() != 0, reason="quotas are set by root")
def test_no_quota(runs, mounting):
    used = sum(path.stat().st_size for path in (runs.scratch / "whole").rglob("*") if path.is_file())
    limits = [used * (number + 1) // (QUOTAS + 1) // 1024 for number in range(QUOTAS)]
    probe = ["mount", "-t", "tmpfs", "-o", "usrquota,usrquota_block_hardlimit=1m", "tmpfs", "/mnt"]
    if "failed" in mounting(commands=[probe]):
        pytest.skip("tmpfs has no quotas in this kernel")
    for limit in some(limits):
        options = f"mode=1777,usrquota,usrquota_block_hardlimit={limit}k"
        goes_on(runs, f"quota {limit} KB", options, "Disk quota exceeded", NOBODY)
