"""A file is put in place only where it computes what the network computes; otherwise all is as it was."""

from pathlib import Path

import pytest
import tiny_runs
import torch

from normfree import RunFailed, UsageError
from normfree.export import Deployed, Preprocessing
from normfree.export import write as exporting
from normfree.export.write import check_place, prepare, write_checked

VIEW = Preprocessing(8, 1, (0.5,), (0.5,), 0)


@pytest.fixture(scope="module")
def job():
    torch.manual_seed(0)
    return prepare(tiny_runs.network(drop_rate=0.0, stochdepth_rate=0.0).eval(), preprocessing=VIEW)


def write(part: Path) -> None:
    part.write_bytes(b"the network")


def full_disk(part: Path) -> None:
    part.write_bytes(b"half")
    raise OSError(28, "No space left on device")


def interrupted(part: Path) -> None:
    part.write_bytes(b"half")
    raise KeyboardInterrupt


def reading(job, run=None):
    return lambda part: Deployed(job.description, run or job.network)


def unreadable(part):
    raise UsageError(f"{part} cannot be opened")


def crash(images):
    raise RuntimeError("no such operator\nand much more")


def test_a_good_file_is_put_in_place(job, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"what was there before")
    written = write_checked(path, job, write, reading(job))
    assert path.read_bytes() == b"the network"
    assert (written.path, written.files, written.checked, written.outputs) == (path, (path,), (1, 3), 10)
    assert written.difference < 1e-5  # folded against not folded
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("error", "said", "writing", "spoil"),
    [
        (RunFailed, "differs from the network by 0.5 relative, allowed are 1e-05", write, lambda run, x: 1.5 * run(x)),
        (RunFailed, "differs from the network by 0.0001 ", write, lambda run, x: 1.0001 * run(x)),
        (RunFailed, "differs from the network by nan", write, lambda run, x: run(x) * float("nan")),
        (RunFailed, "cannot be run and is not kept: no such operator", write, lambda run, x: crash(x)),
        (RunFailed, "No space left on device", full_disk, None),
        (KeyboardInterrupt, "", interrupted, None),
    ],
)
@torch.no_grad()
def test_a_file_that_fails_is_not_kept(job, tmp_path, error, said, writing, spoil):
    path = tmp_path / "a.bin"
    path.write_bytes(b"what was there before")
    run = None if spoil is None else lambda images: spoil(job.network, images)
    with pytest.raises(error) as caught:
        write_checked(path, job, writing, reading(job, run))
    assert said in str(caught.value)
    assert error is KeyboardInterrupt or str(path) in str(caught.value)
    assert path.read_bytes() == b"what was there before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_opened_is_named_as_the_user_named_it(job, tmp_path):
    with pytest.raises(RunFailed) as caught:
        write_checked(tmp_path / "a.bin", job, write, unreadable)
    assert str(caught.value) == f"{tmp_path}/a.bin cannot be run and is not kept: a.bin cannot be opened"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "said"), [("a.txt", "must end in .bin"), ("nowhere/a.bin", "does not exist"), ("d.bin", "is a folder")]
)
def test_places_that_cannot_be_written(tmp_path, path, said):
    (tmp_path / "d.bin").mkdir()
    with pytest.raises(UsageError, match=said):
        check_place(tmp_path / path, ".bin")


def test_a_folder_that_must_not_be_written(tmp_path, monkeypatch):
    def refuse(**kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(exporting.tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(UsageError, match=r"cannot write .*a\.bin: Permission denied"):
        check_place(tmp_path / "a.bin", ".bin")


def test_what_the_file_must_compute_is_what_the_unfolded_network_does(job):
    torch.manual_seed(0)
    model = tiny_runs.network(drop_rate=0.0, stochdepth_rate=0.0).eval()
    for images, expected in job.checks:
        with torch.no_grad():
            assert torch.equal(model(images), expected)
        assert images.std() == pytest.approx(1, abs=0.2)  # noise that reaches every part of it
