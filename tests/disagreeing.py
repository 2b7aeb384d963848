"""Two processes of one run, as torchrun starts them, of which the second one is started otherwise.

One pair of processes goes through all ways, since starting them takes seconds. As a program this file is one of the
two: FOLDER WAY ..., with torchrun's variables in its environment.
"""

import contextlib
import datetime
import gc
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import image_files
import torch.distributed as dist
from tiny_runs import FLAGS

TINY = [*FLAGS, "--recipe", "digits", "--data.image_size", "8", "--data.test_size", "8", "--train.batch_size", "4"]
TINY += ["--optim.warmup_epochs", "1", "--train.log_every", "1"]
ALIKE = ["--epochs", "1"]
LONG = ["--train.steps", "400"]
# what the second process is started with beside, or what is changed in it
ARGUMENTS = {
    "seed": ["--train.seed", "1"],
    "momentum": ["--optim.momentum", "0.8"],
    "several fields": ["--model.drop_rate", "0.5", "--optim.clipping", "null"],
    "precision": ["--train.precision", "bfloat16"],
    "threads": ["--train.threads", "2"],
    "other class": ["--data", "FOLDER/zebras"],
    "one image more": ["--data", "FOLDER/more"],
    "another image": ["--data", "FOLDER/renamed"],
    "no images": ["--data", "imagefolder:FOLDER/nowhere"],
    "another folder": ["--out", "FOLDER/elsewhere"],
    "goes on": ["--resume"],
}
VERSIONS = dict(torch="2.0.1", python="3.9.0", normfree="0.0.1")
WAYS = [*ARGUMENTS, *VERSIONS, "backend", "alike", "fails", "dies"]  # the last one ends the second process


def pictures(folder: Path) -> None:
    """The same photos four times, three of them a little different."""
    for name in ("photos", "zebras", "more", "renamed"):
        image_files.folder(folder / name, train=6)
    for split in ("train", "val"):
        (folder / "zebras" / split / "cat").rename(folder / "zebras" / split / "zebra")
    cats = folder / "more" / "train" / "cat"
    shutil.copy(cats / "0.png", cats / "more.png")
    (folder / "renamed" / "train" / "cat" / "0.png").rename(folder / "renamed" / "train" / "cat" / "other.png")


def start(folder: Path, ways: list[str]) -> list[dict[str, tuple[int, list[str]]]]:
    """What each of two processes says in each way: its exit code, and its lines on standard error."""
    pictures(folder)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun has one, too
    processes = []
    for rank in range(2):
        torchrun = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=store.port)
        torchrun |= dict(TORCHELASTIC_USE_AGENT_STORE=True, OMP_NUM_THREADS=1)
        environment = os.environ | {name: str(value) for name, value in torchrun.items()}
        command = [sys.executable, __file__, str(folder), *ways]
        processes.append(subprocess.Popen(command, env=environment))
    for process in processes:
        process.wait()
    lines = [(folder / f"said.{rank}").read_text().splitlines() for rank in range(2)]
    return [dict(map(json.loads, some)) for some in lines]


@contextlib.contextmanager
def changed(way: str):
    """This process, in which something is otherwise."""
    from unittest import mock

    from normfree.runs import agreement
    from normfree.training import TrainStep, distributed

    call = TrainStep.__call__

    def failing(step, *arguments):
        failing.calls += 1
        if failing.calls == 4:
            if way == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ZeroDivisionError("planted")
        return call(step, *arguments)

    failing.calls = 0
    with contextlib.ExitStack() as stack:
        if way in VERSIONS:
            software = agreement.software() | {way: VERSIONS[way]}
            stack.enter_context(mock.patch.object(agreement, "software", return_value=software))
        elif way == "backend":
            stack.enter_context(mock.patch.object(distributed, "_backend", return_value="GPU"))
        elif way in ("fails", "dies"):
            stack.enter_context(mock.patch.object(TrainStep, "__call__", failing))
        yield


def one_of_two(folder: Path, ways: list[str]) -> None:
    from normfree.cli import main
    from normfree.training import distributed

    distributed.TIMEOUT = datetime.timedelta(seconds=60)  # so long one waits for the other, and not for ever
    rank = int(os.environ["RANK"])
    store = dist.TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), is_master=False)
    store.set(f"ready {rank}", "")
    store.wait([f"ready {other}" for other in range(2)], datetime.timedelta(hours=1))  # a loaded machine starts slowly
    for attempt, way in enumerate(ways):
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(attempt)
        arguments = ["--data", f"{folder}/photos", *TINY, "--out", f"{folder}/{way}"]
        arguments += LONG if way in ("fails", "dies") else ALIKE
        if rank == 1:
            arguments += [argument.replace("FOLDER", str(folder)) for argument in ARGUMENTS.get(way, [])]
        said = io.StringIO()
        with changed(way) if rank == 1 else contextlib.nullcontext(), contextlib.redirect_stderr(said):
            code = main(["train", *arguments])
        gc.collect()  # what a run that failed has left, its connections among it: other runs end with their process
        with (folder / f"said.{rank}").open("a") as file:
            file.write(json.dumps([way, [code, said.getvalue().splitlines()]]) + "\n")


if __name__ == "__main__":
    one_of_two(Path(sys.argv[1]), sys.argv[2:])
