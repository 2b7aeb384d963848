"""Runs `normfree` in forked processes, each killed at the N-th event in its folder: a server for tests/runs/test_kills.

Reads jobs, one JSON line each: the command's arguments, the folder whose events are counted, the number of the event to
die at (none: count them all), how many processes share the run, and which of them dies. Answers with one line: exit
codes, and the events of that process.

An event is anything that changes the folder: a file is opened to be written, was opened and is empty, is renamed,
removed, linked, made, synchronized, or half of a file of tensors is there; and each step and each evaluation. The
process dies before it happens.
"""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

from normfree.cli import main
from normfree.training import TrainStep, checkpoints, loop

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate", "os.chmod")
SECONDS = 120  # a process that is not done by then hangs


class Events:
    """Counts events in a folder, and dies at one of them."""

    def __init__(self, folder: str, last: int | None):
        self.folder, self.last, self.count, self.names = folder, last, 0, []

    def happen(self, what: str, path: object) -> None:
        if not isinstance(path, str | os.PathLike) or not os.path.abspath(path).startswith(self.folder):
            return
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1
        self.names.append(f"{what} {os.path.relpath(path, self.folder)}")

    def audit(self, event: str, args: tuple) -> None:
        if event in CHANGES:
            self.happen(event, args[1] if event == "os.symlink" else args[0])
        elif event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR):
            self.happen("open", args[0])

    def install(self) -> None:
        """In this process, which its children leave: they write nothing."""
        sys.addaudithook(self.audit)
        opened, write, fsync, save = io.open, os.write, os.fsync, checkpoints.save_file

        def open_file(path, mode="r", *args, **options):
            file = opened(path, mode, *args, **options)
            if any(letter in mode for letter in "wax+"):
                self.happen("opened", path)
            return file

        def write_bytes(descriptor, content):
            self.happen("write", _path(descriptor))
            return write(descriptor, content)

        def synchronize(descriptor):
            self.happen("fsync", _path(descriptor))
            return fsync(descriptor)

        def save_file(tensors, path, metadata=None):
            save(tensors, path, metadata)
            if self.count == self.last:  # as if it had not got further
                os.truncate(path, Path(path).stat().st_size // 2)
            self.happen("half of", path)

        io.open = open_file
        os.write, os.fsync, checkpoints.save_file = write_bytes, synchronize, save_file
        self.before(TrainStep, "__call__", "step")
        self.before(loop, "evaluate", "evaluation")

    def before(self, owner: object, name: str, what: str) -> None:
        """An event before each call of a function."""
        function = getattr(owner, name)

        def call(*args, **options):
            self.happen(what, self.folder)
            return function(*args, **options)

        setattr(owner, name, call)


def _path(descriptor: int) -> str | None:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return None


def run(job: dict, rank: int, port: int, told: int) -> None:
    """The command in this process, which ends here."""
    code = 1
    try:
        os.setpgid(0, 0)  # with the processes that decode for it
        if "user" in job:
            os.setgid(job["user"]), os.setuid(job["user"])
        torch.set_num_threads(1)
        if job["world"] > 1:
            numbers = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=job["world"], LOCAL_WORLD_SIZE=job["world"])
            os.environ.update({name: str(number) for name, number in numbers.items()})
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        events = Events(job["folder"], job["at"] if rank == job["rank"] else None)
        events.install()
        code = main(job["argv"])
        sys.stdout.flush(), sys.stderr.flush()
        os.write(told, json.dumps([rank, events.names]).encode() + b"\n")
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def answer(job: dict) -> dict:
    """Run the processes of a job to their ends; of several, the others are killed once one was."""
    reading, writing = os.pipe()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = {}
    for rank in range(job["world"]):
        if (pid := os.fork()) == 0:
            run(job, rank, port, writing)
        processes[pid] = rank
    os.close(writing)
    codes: dict[int, int] = {}
    end = time.monotonic() + SECONDS
    while len(codes) < len(processes):
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in processes:
            codes[processes[pid]] = code = os.waitstatus_to_exitcode(status)
            _kill_group(pid)
            if code < 0 or time.monotonic() > end:
                for other, rank in processes.items():
                    if rank not in codes:
                        _kill_group(other)
        elif time.monotonic() > end:
            for other in processes:
                _kill_group(other)
        else:
            time.sleep(0.005)
    with os.fdopen(reading) as file:
        names = dict(json.loads(line) for line in file)
    return dict(codes=[codes[rank] for rank in range(job["world"])], events=names.get(job["rank"], []))


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def carry_out(job: dict) -> dict:
    """A job's runs, or its commands: of a server in a mount namespace of its own, these mount what only it sees."""
    for command in job.get("commands", []):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return dict(failed=" ".join(command) + ": " + done.stderr)
    return answer(job) if "argv" in job else {}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(carry_out(json.loads(line))), flush=True)
