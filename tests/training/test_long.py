"""A long run: what it holds and what it writes do not grow but for the lines of metrics."""

import gc
import os
import resource
import sys
from pathlib import Path

import pytest
from selection import share
from tiny_runs import few_digits, trainer

from normfree.data import DataConfig
from normfree.tasks import Classification, TaskConfig

STEPS = 20_000
LINE = 600  # bytes of metrics.jsonl for each line of a network with three stages, at most


@pytest.mark.slow
@pytest.mark.scaled
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # from Python 3.12 on
@pytest.mark.parametrize("workers", [0, 2])
def test_memory_and_open_files_stay(tmp_path, workers):
    """By default 200 steps; after the first evaluation, 8 MB and two open files more are allowed."""
    steps = share(STEPS, 0.01)
    data = DataConfig(channels=1, resize_margin=0, crop="shift", flip=False, workers=workers)
    task = Classification(few_digits(160), TaskConfig(), data, image_size=8, test_size=8, batch_size=16, seed=0)
    run = trainer(tmp_path, task=task, train=dict(steps=steps, eval_every=steps / 50))  # five evaluations
    seen = []

    def look(step: int) -> None:
        if step and step % (steps // 10) == 0:
            gc.collect()
            seen.append((_resident(), len(os.listdir("/proc/self/fd"))))

    run.on_step = look
    run.fit()
    assert len(seen) == 10
    assert max(memory for memory, _ in seen[3:]) - seen[2][0] < 8 * 2**20
    assert max(files for _, files in seen[3:]) - seen[2][1] <= 2
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    assert max(map(len, lines)) < LINE
    assert len(list((tmp_path / "checkpoints").glob("step-*"))) <= 3


def _resident() -> int:
    """Bytes of memory that the process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
