"""Runs in forked processes that end early, by a kill or a full disk, and what they leave: for tests/runs."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from image_files import pixels, write
from tiny_runs import FLAGS

from normfree.training import find_checkpoint, read_metrics
from normfree.training.checkpoints import read_state, read_tensors

SERVER = Path(__file__).parent / "killed_train.py"
# an evaluation after the second and the fourth step, and a checkpoint after the third
STEPS = ["--train.steps", 4, "--train.batch_size", 8, "--train.eval_every", 0.5, "--train.save_every", 3]
STEPS += ["--optim.warmup_epochs", 0, "--optim.ema_decay", 0.9, "--train.log_every", 1, "--train.spp_every", 2]
STEPS += ["--train.threads", 1]


@dataclass(frozen=True)
class Kind:
    """How the run is computed: processes that share it, processes that decode for it, who is killed."""

    world: int = 1
    workers: int = 0
    rank: int = 0


class Server:
    """A process that has imported everything, and forks one for each run."""

    def __init__(self, *prefix: str) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([*prefix, sys.executable, str(SERVER)], stdin=pipe, stdout=pipe, text=True)

    def __call__(self, **job: Any) -> dict[str, Any]:
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def photos(root: Path) -> Path:
    """16 images to train with and 8 to test, of two classes."""
    for number in range(24):
        split = "train" if number < 16 else "val"
        write(root / split / "ab"[number % 2] / f"{number}.png", pixels(10, 10, number))
    return root


@dataclass(frozen=True)
class Ended:
    """What a run leaves: tensors by file and name, the state, and the lines of metrics without times."""

    tensors: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]
    lines: list[dict[str, Any]]
    films: list[Any]
    files: set[str]


def ended(folder: Path) -> Ended:
    checkpoint, told = find_checkpoint(folder / "checkpoints")
    assert told == []
    tensors = {name: read_tensors(checkpoint, name) for name in ("weights", "ema", "momentum", "random")}
    state = read_state(checkpoint)
    for timed in ("seconds", "recent"):
        state.pop(timed)
    lines = [
        {key: value for key, value in line.items() if key not in ("images_per_s", "seconds_left")}
        for line in read_metrics(folder)
    ]
    films = [json.loads(line) for line in (folder / "spp.jsonl").read_text().splitlines()]
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return Ended(tensors, state, lines, films, files)


def same(a: Ended, b: Ended) -> None:
    for name, tensors in a.tensors.items():
        assert tensors.keys() == b.tensors[name].keys()
        assert all(torch.equal(tensor, b.tensors[name][key]) for key, tensor in tensors.items()), name
    assert a.state == b.state
    assert a.lines == b.lines
    assert a.films == b.films
    assert a.files ^ b.files == set()


class Runs:
    """Runs of one kind: the one that nothing stopped, and those that were killed."""

    def __init__(self, kind: Kind, server: Server, scratch: Path, photos: Path):
        self.kind, self.server, self.scratch, self.photos = kind, server, scratch, photos
        whole = self.run(scratch / "whole", None)
        assert whole["codes"] == [0] * kind.world, self.log(scratch / "whole")
        self.events, self.expected = whole["events"], ended(scratch / "whole")

    def run(self, out: Path, at: int | None, **more: Any) -> dict[str, Any]:
        argv = ["train", *FLAGS, *STEPS, "--data", f"imagefolder:{self.photos}", "--out", out, "--resume"]
        argv += ["--data.image_size", 8, "--data.test_size", 8, "--data.workers", self.kind.workers]
        argv += ["--recipe", "digits", "--data.channels", 3, "--data.mean", "[0.5,0.5,0.5]", "--data.std", "[1,1,1]"]
        who = dict(world=self.kind.world, rank=self.kind.rank)
        return self.server(argv=[str(a) for a in argv], folder=str(out), at=at, **{"log": f"{out}.log", **who, **more})

    def log(self, out: Path) -> str:
        return Path(f"{out}.log").read_text()

    def killed(self, at: int) -> None:
        """Killed at this event, and started again by the same command until it ends."""
        out, what = self.scratch / f"at{at}", self.events[at] if at < len(self.events) else "after the last"
        first = self.run(out, at)
        assert any(code != 0 for code in first["codes"]), (at, what)
        again = self.run(out, None)
        assert again["codes"] == [0] * self.kind.world, (at, what, self.log(out))
        try:
            same(self.expected, ended(out))
        except AssertionError as error:
            raise AssertionError(f"killed at event {at}, before: {what}") from error
        assert "Traceback" not in self.log(out)
