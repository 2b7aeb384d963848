"""One process at a time writes a run: refused by name, given back, taken over from the dead."""

import dataclasses
import errno
import json
import os
import platform
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


@pytest.mark.parametrize("left", ["", '{"host": "a', "[]", "{}"])
def test_a_lock_that_was_cut_off(tmp_path, left):
    (tmp_path / "lock").write_text(left)
    with RunLock() as lock:
        lock.take(tmp_path)
        assert written(tmp_path)["pid"] == os.getpid()
