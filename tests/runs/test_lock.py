"""One process at a time writes a run: refused by name, given back, taken over from the dead."""

import dataclasses
import errno
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from normfree import RunFailed, UsageError
from normfree.runs import lock as module
from normfree.runs.lock import Holder, RunLock

HOLDING = """
import sys, time
from pathlib import Path
from normfree.runs import RunLock
lock = RunLock()
lock.take(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLDING, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def written(folder) -> dict:
    return json.loads((folder / "lock").read_text())


def elsewhere(folder, **changed) -> Holder:
    """A lock that a process of another machine left."""
    holder = dataclasses.replace(Holder.here(), **{"host": "node7", "place": "node7 boot pid", "pid": 5, **changed})
    (folder / "lock").write_text(json.dumps(dataclasses.asdict(holder)))
    return holder


def test_a_second_process_is_refused_by_host_and_number(tmp_path, other):
    with pytest.raises(UsageError, match=rf"in use by process {other.pid} on {platform.node()}"):
        RunLock().take(tmp_path)
    assert written(tmp_path)["pid"] == other.pid


def test_without_the_systems_locks_too(tmp_path, other, monkeypatch):
    def unsupported(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module.fcntl, "lockf", unsupported)
    with pytest.raises(UsageError, match=rf"in use by process {other.pid} on"):
        RunLock().take(tmp_path)
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with RunLock() as lock:
        lock.take(tmp_path)


def test_the_systems_lock_alone_is_enough(tmp_path, other):
    """Another container on this machine, whose process numbers mean nothing here."""
    elsewhere(tmp_path)  # the same file: the process keeps the system's lock on it
    with pytest.raises(UsageError, match="in use by process 5 on node7"):
        RunLock().take(tmp_path)


def test_a_killed_process_leaves_nothing_that_blocks(tmp_path, other):
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert written(tmp_path)["pid"] == other.pid
    said = []
    with RunLock(said.append) as lock:
        lock.take(tmp_path)
        assert written(tmp_path)["pid"] == os.getpid()
    assert said == [f"process {other.pid} on {platform.node()} held {tmp_path} and is gone; this process takes over"]
    assert not (tmp_path / "lock").exists()


def test_a_number_that_another_process_has_by_now(tmp_path):
    elsewhere(tmp_path, host=platform.node(), place=module._place(), pid=os.getpid(), started="1")
    with RunLock() as lock:
        lock.take(tmp_path)


def test_the_same_process_twice(tmp_path):
    with RunLock() as lock:
        lock.take(tmp_path)
        lock.take(tmp_path)  # the same lock: nothing to do
        with pytest.raises(UsageError, match=f"in use by process {os.getpid()}"):
            RunLock().take(tmp_path)
    with RunLock() as lock:
        lock.take(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RunFailed, ValueError])
def test_errors_give_it_back(tmp_path, error):
    def fails():
        with RunLock() as lock:
            lock.take(tmp_path)
            raise error("stop")

    with pytest.raises(error):
        fails()
    assert list(tmp_path.iterdir()) == []


def test_a_machine_that_is_silent_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SILENCE", 0.05)
    elsewhere(tmp_path)
    said = []
    with RunLock(said.append) as lock:
        lock.take(tmp_path)
    assert said[0].startswith(f"process 5 on node7 holds {tmp_path}; waiting up to")
    assert said[1].startswith(f"process 5 on node7 held {tmp_path} and is gone")


def test_a_machine_that_gives_signs_of_life_is_not(tmp_path, monkeypatch):
    elsewhere(tmp_path)
    stop = threading.Event()

    def renew():
        while not stop.wait(0.01):
            os.utime(tmp_path / "lock")

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(UsageError, match="in use by process 5 on node7"):
            RunLock().take(tmp_path)
    finally:
        stop.set()
        thread.join()


def test_signs_of_life_are_given(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RENEWAL", 0.01)
    with RunLock() as lock:
        lock.take(tmp_path)
        os.utime(tmp_path / "lock", (1, 1))
        while (tmp_path / "lock").stat().st_mtime == 1:
            pass


def test_a_process_that_stood_still_notices_the_other(tmp_path):
    with RunLock() as lock:
        lock.check()  # nothing is held
        lock.take(tmp_path)
        lock.check()
        elsewhere(tmp_path)
        with pytest.raises(RunFailed, match=f"process 5 on node7 has taken over {tmp_path}"):
            lock.check()
    assert written(tmp_path)["host"] == "node7"  # the other's is left alone


DAMAGED = ["", '{"host": "a', "[]", "{}", "[" * 100_000, b"\xff\xfe\x00" * 99]


@pytest.mark.parametrize("left", DAMAGED, ids=range(len(DAMAGED)))
def test_a_lock_that_was_cut_off_or_damaged(tmp_path, left):
    (tmp_path / "lock").write_bytes(left if isinstance(left, bytes) else left.encode())
    with RunLock() as lock:
        lock.take(tmp_path)
        assert written(tmp_path)["pid"] == os.getpid()


@pytest.mark.parametrize(("field", "value"), [("pid", "5"), ("pid", None), ("host", 5), ("place", []), ("inode", "1")])
def test_a_lock_of_other_kinds_of_values_is_nobodys(tmp_path, field, value):
    holder = dataclasses.asdict(elsewhere(tmp_path)) | {field: value}
    (tmp_path / "lock").write_text(json.dumps(holder))
    with RunLock() as lock:
        lock.take(tmp_path)


def test_a_process_whose_lock_was_damaged_goes_on(tmp_path):
    with RunLock() as lock:
        lock.take(tmp_path)
        (tmp_path / "lock").write_bytes(b"\xff[" * 100_000)
        lock.check()


def test_a_copy_of_a_folder_in_use_is_free(tmp_path, other):
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy2(tmp_path / "lock", copy)
    said = []
    with RunLock(said.append) as lock:
        lock.take(copy)
        assert written(copy)["pid"] == os.getpid()
    who = f"process {other.pid} on {platform.node()}"
    assert said == [f"{who} held the folder that {copy} is a copy of; this process takes over"]
    with pytest.raises(UsageError, match=f"in use by {who}"):
        RunLock().take(tmp_path)


def test_a_lock_from_before_that_does_not_name_its_file(tmp_path, other):
    content = written(tmp_path)
    del content["inode"]
    (tmp_path / "lock").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=f"in use by process {other.pid}"):
        RunLock().take(tmp_path)
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy2(tmp_path / "lock", copy)
    with pytest.raises(UsageError, match=f"in use by process {other.pid}"):
        RunLock().take(copy)


def test_a_pipe_and_a_link_are_refused_by_name(tmp_path):
    path = tmp_path / "lock"
    os.mkfifo(path)
    with pytest.raises(UsageError, match=f"{path} cannot be written: a pipe, not a file"):
        RunLock().take(tmp_path)
    path.unlink()
    path.symlink_to(tmp_path / "file")
    for content in (None, "here"):
        if content is not None:
            (tmp_path / "file").write_text(content)
        with pytest.raises(UsageError, match=f"{path} cannot be written: a symbolic link, not a file"):
            RunLock().take(tmp_path)
    assert (tmp_path / "file").read_text() == "here"
