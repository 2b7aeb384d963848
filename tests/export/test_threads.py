"""One network asked by several threads at once answers as it does one after the other, bit for bit."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import image_files
import pytest
import tiny_runs
import torch

from normfree import fold
from normfree.data import EvalTransform, decode_image
from normfree.export import Preprocessing, open_archive, open_onnx, prepack, to_archive, to_onnx

THREADS, ROUNDS = 4, 6
VIEW = Preprocessing(8, 1, (0.5,), (0.5,), 0)


def network(folder, kind: str):
    torch.manual_seed(0)
    model = tiny_runs.network(drop_rate=0.0, stochdepth_rate=0.0).eval()
    if kind == "onnx":
        return open_onnx(to_onnx(model, folder / "a.onnx", preprocessing=VIEW).path).run
    if kind == "pt2":
        return open_archive(to_archive(model, folder / "a.pt2", preprocessing=VIEW).path).run
    if kind == "prepacked":
        return prepack(model, (1, 1, 8, 8))
    return fold(model) if kind == "folded" else model


@pytest.mark.parametrize("kind", ["model", "folded", "prepacked", "onnx", "pt2"])
def test_answers_of_several_threads(tmp_path, monkeypatch, kind):
    """Each thread reads, prepares and asks about its own images; they begin together and take turns often."""
    view = EvalTransform(8, 0, (0.5,), (0.5,))
    files = [image_files.write(tmp_path / f"{i}.png", image_files.pixels(9 + i, 12, i)) for i in range(THREADS)]
    run, begin = network(tmp_path, kind), threading.Barrier(THREADS)

    def ask(file):
        with torch.inference_mode():
            return run(view(decode_image(file, 1))[None]).clone()

    def work(file):
        begin.wait()
        return [ask(file) for _ in range(ROUNDS)]

    expected = [ask(file) for file in files]
    assert len({tuple(one.flatten().tolist()) for one in expected}) == THREADS
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(work, files))
    finally:
        sys.setswitchinterval(interval)
    for answers, right in zip(found, expected, strict=True):
        assert all(torch.equal(answer, right) for answer in answers)
