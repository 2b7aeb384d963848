"""The same work by two states of this repository, in turn: what a change did to speed, and whether outputs changed.

    python benchmarks/commits.py v1 v2                        # any two commits; kernels are built for each
    python benchmarks/commits.py HEAD~5 HEAD --rounds 9 --only "nfnet_f0, step" --only "nf_resnet50, step"

Each commit is checked out into a folder of its own and works in a process of its own, which waits while the other one
works. Before anything is timed, both give the outputs of the same seeded networks, which are compared bit for bit.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = {"nfnet_f0": (8, 192), "nf_resnet50": (8, 192), "nf_regnet_b0": (16, 192)}


def works() -> dict[str, Callable[[], Callable[[], object]]]:
    """What is timed, by name: each builds its network and returns one run of it."""
    import torch

    import normfree
    from normfree.bench import image_batch, training_step

    def network(name: str, size: int) -> tuple[torch.nn.Module, torch.Tensor]:
        torch.manual_seed(0)
        return normfree.create_model(name), torch.randn(1, 3, size, size)

    def step(name: str, batch: int, size: int, precision: str) -> Callable[[], object]:
        model, _ = network(name, size)
        model = model.to(memory_format=torch.channels_last)
        return training_step(model, image_batch(batch, size), precision=precision)

    def prepacked(name: str, size: int) -> Callable[[], object]:
        model, images = network(name, size)
        packed = normfree.export.prepack(model.eval(), tuple(images.shape))
        return lambda: packed(images)

    def forward(name: str, size: int) -> Callable[[], object]:
        model, images = network(name, size)
        model.eval()

        def run() -> torch.Tensor:
            with torch.no_grad():
                return model(images)

        return run

    made: dict[str, Callable[[], Callable[[], object]]] = {}
    for name, (batch, size) in NETWORKS.items():
        made[f"{name}, step, float32"] = lambda n=name, b=batch, s=size: step(n, b, s, "float32")
        made[f"{name}, step, bfloat16"] = lambda n=name, b=batch, s=size: step(n, b, s, "bfloat16")
        made[f"{name}, step, one image"] = lambda n=name, s=size: step(n, 1, s, "float32")
        made[f"{name}, evaluation, one image"] = lambda n=name, s=size: forward(n, s)
        made[f"{name}, prepacked, one image"] = lambda n=name, s=size: prepacked(n, s)
    return made


def work() -> None:
    """One side: reads the name of a work per line; the first time builds it, then runs it once and tells the time."""
    import time

    import torch

    from normfree.bench import machine
    from normfree.training import keep_freed_memory

    keep_freed_memory()
    known, name, run = works(), None, None
    print(json.dumps(dict(machine=machine(), names=list(known))), flush=True)
    for line in sys.stdin:
        asked, said = line.rstrip("\n"), {}
        if asked != name:
            run = None  # the memory of the one before is free first
            name, run = asked, known[asked]()
            output = run()
            if isinstance(output, torch.Tensor):
                said["output"] = output.double().flatten().tolist()
            run()
        begun = time.perf_counter()
        run()
        print(json.dumps(dict(seconds=time.perf_counter() - begun, **said)), flush=True)


class Side:
    """A commit, checked out and at work in a process of its own."""

    def __init__(self, tree: Path):
        code = f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import commits; commits.work()"
        path = os.pathsep.join([str(tree / "src"), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=tree,
            env={**os.environ, "PYTHONPATH": path},
        )
        self.about = self._read()

    def run(self, name: str) -> dict:
        print(name, file=self.process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a side ended early, with exit code {self.process.wait()}")
        return json.loads(line)


@contextlib.contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """The files of a commit, with its kernels: built, or copied from here if their sources are the same."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
    try:
        kernels = Path("src", "normfree", "kernels")
        built = list((ROOT / kernels).glob("*.so"))
        sources = [str(kernels / "*.cpp"), str(kernels / "*.h"), "setup.py"]
        unchanged = subprocess.run(["git", "-C", str(ROOT), "diff", "--quiet", commit, "--", *sources]).returncode == 0
        if built and unchanged:
            for library in built:
                shutil.copy2(library, folder / kernels)
        else:
            build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
            subprocess.run(build, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", action="append", help="names that contain this; may be given several times")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        trees = [
            stack.enter_context(checked_out(commit, folder / str(place)))
            for place, commit in enumerate((options.before, options.after))
        ]
        sides = [Side(tree) for tree in trees]
        for side, commit in zip(sides, (options.before, options.after), strict=True):
            stack.callback(side.process.wait)
            stack.callback(side.process.stdin.close)
            print(f"{commit}: {side.about['machine']}")
        names = [n for n in sides[0].about["names"] if not options.only or any(part in n for part in options.only)]
        print("\n| | before, ms | after, ms | after / before (rounds) | outputs |\n|---|---|---|---|---|")
        for name in names:
            print(row(name, sides, options.rounds), flush=True)


def row(name: str, sides: list[Side], rounds: int) -> str:
    """A work timed on both sides in turn, which one goes first changing with each round."""
    first = [side.run(name) for side in sides]
    outputs = [said.get("output") for said in first]
    same = "-"
    if outputs[0] is not None:
        most = max(abs(a - b) for a, b in zip(*outputs, strict=True))
        same = "equal to the bit" if most == 0 else f"differ by {most:.1e}"
    times: list[list[float]] = [[], []]
    for number in range(rounds):
        for place in (0, 1) if number % 2 == 0 else (1, 0):
            times[place].append(sides[place].run(name)["seconds"])
    before, after = (1e3 * statistics.median(some) for some in times)
    ratios = sorted(b / a for a, b in zip(*times, strict=True))
    ratio = f"{statistics.median(ratios):.3f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    return f"| {name} | {before:.0f} | {after:.0f} | {ratio} | {same} |"


if __name__ == "__main__":
    main()
