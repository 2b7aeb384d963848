"""A run's checkpoints: which are kept, how they are found without links or in the middle of a save, formats."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from checkpoint_files import rewrite_json

from normfree import UsageError
from normfree.training import Checkpoints, damage, find_checkpoint, read_checkpoint
from normfree.training.checkpoints import FORMAT, read_state


def save(checkpoints: Checkpoints, step: int, *, best: int | None = None, **options) -> Path:
    """``best``: the step of the best evaluation so far."""
    state = dict(step=step) if best is None else dict(step=step, best=dict(step=best))
    return checkpoints.save(step, dict(weights={"w": torch.full((4,), float(step))}), state, **options)


def there(folder: Path) -> list[int]:
    """Steps of the checkpoints, and nothing half done beside them."""
    names = sorted(path.name for path in folder.iterdir() if path.name not in ("last", "best"))
    assert all(name.removeprefix("step-").isdigit() for name in names), names
    return [int(name.removeprefix("step-")) for name in names]


@pytest.fixture
def folder(tmp_path):
    """RUN/checkpoints with those of the steps 1 and 2, of which 1 is the best."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", dict(classes=["a"]))
    save(checkpoints, 1, best=1)
    save(checkpoints, 2, best=1)
    return checkpoints.folder


def going_on(folder: Path, step: int, **options) -> Checkpoints:
    checkpoints = Checkpoints(folder, dict(classes=["a"]))
    checkpoints.resume_from(step, **options)
    return checkpoints


@pytest.mark.parametrize("resumed", [False, True])
def test_a_step_that_is_saved_twice_leaves_the_one_before(tmp_path, resumed):
    checkpoints = Checkpoints(tmp_path, {})
    for step in (1, 2, 3):
        save(checkpoints, step)
    if resumed:
        checkpoints = going_on(tmp_path, 3)
    save(checkpoints, 3)
    assert there(tmp_path) == [2, 3]
    save(checkpoints, 4)
    assert there(tmp_path) == [3, 4]


def test_what_lies_beyond_the_step_that_a_run_goes_on_from_is_no_reserve(tmp_path):
    checkpoints = Checkpoints(tmp_path, {})
    for step in (4, 8):
        save(checkpoints, step)
    (tmp_path / "step-00000008" / "state.json").write_text("{")
    save(going_on(tmp_path, 4), 6)
    assert there(tmp_path) == [4, 6]


def test_checkpoints_of_steps_left_out_take_no_place(tmp_path):
    """The weights are those from before the first such step: what was saved then, perhaps too late, is kept."""
    checkpoints = Checkpoints(tmp_path, {})
    for step, provisional in ((1, False), (2, False), (3, True), (4, True)):
        save(checkpoints, step, provisional=provisional)
    assert there(tmp_path) == [1, 2, 4]
    checkpoints = going_on(tmp_path, 4, provisional=True)  # the row goes on after a stop
    save(checkpoints, 5, provisional=True)
    assert there(tmp_path) == [1, 2, 5]
    save(checkpoints, 6)
    assert there(tmp_path) == [2, 6]
    save(checkpoints, 7)
    assert there(tmp_path) == [6, 7]


@pytest.mark.parametrize("which", ["last", "best"])
def test_between_the_two_renames_of_a_save_the_old_one_is_found(folder, which):
    """A kill there leaves no folder of that name, and a link to nothing."""
    step = dict(last=2, best=1)[which]
    old = folder / f"step-{step:08d}.old"
    (folder / f"step-{step:08d}").rename(old)
    assert find_checkpoint(folder, which) == (old, [])
    assert read_checkpoint(folder.parent, which)[0]["w"][0] == step
    save(going_on(folder, 2), 3, best=1)
    assert there(folder) == [1, 2, 3]  # put back; the best, the one before and the last
    assert damage(folder / f"step-{step:08d}") is None


def test_an_old_one_takes_the_place_of_a_damaged_one(folder):
    shutil.copytree(folder / "step-00000002", folder / "step-00000002.old")
    (folder / "step-00000002" / "weights.safetensors").write_bytes(b"")
    found, told = find_checkpoint(folder)
    assert found.name == "step-00000002.old"
    assert "step-00000002 is damaged (weights.safetensors has 0 bytes" in told[0]
    save(going_on(folder, 2), 3, best=1)
    assert damage(folder / "step-00000002") is None
    assert there(folder) == [1, 2, 3]


def copied(folder: Path, tmp_path: Path, how: str) -> Path:
    """As `cp -rL` copies it, or as object stores do and rsync without -l."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, symlinks=False)
    if how == "nothing":
        shutil.rmtree(copy / "last")
        shutil.rmtree(copy / "best")
    return copy


@pytest.mark.parametrize("how", ["folders", "nothing"])
def test_a_copy_without_links_is_read_and_goes_on(folder, tmp_path, how):
    copy = copied(folder, tmp_path, how)
    for which, step in (("last", 2), ("best", 1)):
        found, told = find_checkpoint(copy, which)
        assert (read_state(found)["step"], told) == (step, [])
    checkpoints = going_on(copy, 2)
    assert read_state(checkpoints.saved_in())["step"] == 2
    save(checkpoints, 3, best=1)
    assert there(copy) == [1, 2, 3]  # the best is kept without its link, too
    assert os.readlink(copy / "last") == "step-00000003"
    assert (copy / "best").is_symlink() == (how == "nothing")  # a folder in its place is as good
    assert read_state(find_checkpoint(copy, "best")[0])["step"] == 1
    assert checkpoints.saved_in() == copy / "last"


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL])
def test_where_there_are_no_links_the_newest_is_the_last(tmp_path, monkeypatch, number):
    def none(*args, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "symlink", none)
    checkpoints = Checkpoints(tmp_path, {})
    for step in (1, 2, 3, 4):
        checkpoints.save(step, dict(weights={"w": torch.ones(1)}), dict(step=step, best=dict(step=1)), best=step == 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-0000000{n}" for n in (1, 3, 4)]
    assert find_checkpoint(tmp_path) == (tmp_path / "step-00000004", [])
    assert find_checkpoint(tmp_path, "best") == (tmp_path / "step-00000001", [])
    assert checkpoints.saved_in() == tmp_path / "step-00000004"


def test_a_new_best_takes_the_place_of_a_copied_folder(folder, tmp_path):
    copy = copied(folder, tmp_path, "folders")
    checkpoints = going_on(copy, 2)
    weights = dict(weights={"w": torch.ones(1)})
    checkpoints.save(3, weights, dict(step=3, best=dict(step=3)), best=True)
    assert os.readlink(copy / "best") == "step-00000003"
    assert there(copy) == [2, 3]


@pytest.mark.parametrize("name", ["step-00000001-good", "step-00000001.bak", "step-1.keep", "step-00000001-good.old"])
def test_what_the_user_has_put_there_stays(folder, name):
    """Copies under names of the user's own, whole or not; what is made here goes in due time."""
    shutil.copytree(folder / "step-00000001", folder / name)
    (folder / name / "weights.safetensors").unlink()
    for left in ("step-00000007.part", "step-00000008.old", "step-123456789"):
        (folder / left).mkdir()
    checkpoints = going_on(folder, 2)
    checkpoints.tidy(1)
    save(checkpoints, 3, best=3)
    save(checkpoints, 4, best=3)
    assert (folder / name / "state.json").is_file()
    shutil.rmtree(folder / name)
    assert there(folder) == [1, 3, 4]  # 1 is what the link "best" is to


def test_a_renamed_checkpoint_that_a_run_goes_on_from_stays(folder):
    source = (folder / "step-00000002").rename(folder / "step-00000009")
    found, _ = find_checkpoint(folder)
    assert (found, read_state(found)["step"]) == (source, 2)
    checkpoints = going_on(folder, 2, source=found)
    checkpoints.tidy(1)
    assert damage(source) is None
    assert checkpoints.saved_in() == source
    for step in (3, 4, 5):
        save(checkpoints, step, best=1)
    assert there(folder) == [1, 4, 5, 9]


def test_a_place_is_named_only_if_it_is_there(folder):
    checkpoints = Checkpoints(folder, {})
    assert checkpoints.saved_in() is None
    checkpoints.resume_from(2)
    assert checkpoints.saved_in() == folder / "last"
    (folder / "last").unlink()
    assert checkpoints.saved_in() == folder / "step-00000002"
    shutil.rmtree(folder / "step-00000002")
    assert checkpoints.saved_in() is None


def test_a_newer_format_is_refused_by_name(folder):
    later = dict(format=FORMAT + 1)
    rewrite_json(folder / "step-00000002", later, later)
    said = rf"step-00000002/manifest\.json was written by a newer normfree: format {FORMAT + 1}, this one reads up to 2"
    for read in (lambda: find_checkpoint(folder), lambda: read_checkpoint(folder.parent)):
        with pytest.raises(UsageError, match=said):
            read()
    assert read_state(find_checkpoint(folder, "best")[0])["step"] == 1


def test_a_format_that_only_the_manifest_says_is_damage(folder):
    rewrite_json(folder / "step-00000002", dict(format=FORMAT + 1), {})
    assert damage(folder / "step-00000002") == "manifest.json is damaged"
    assert find_checkpoint(folder)[0].name == "step-00000001"


def test_an_older_format_is_read(folder):
    """It did not say that it is one."""
    rewrite_json(folder / "step-00000002", dict(format=None), dict(format=None))
    assert "format" not in (folder / "step-00000002" / "manifest.json").read_text()
    assert find_checkpoint(folder) == (folder / "step-00000002", [])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (dict(files={}), "manifest.json names no "),
        (dict(files={"state.json": 1}), "manifest.json names no weights.safetensors"),
        (dict(files=None), "manifest.json is damaged"),
        (dict(format="two"), "manifest.json is damaged"),
        (dict(step=None), "manifest.json is damaged"),
    ],
)
def test_a_manifest_that_names_too_little_is_not_good(folder, content, said):
    rewrite_json(folder / "step-00000002", content, {})
    assert damage(folder / "step-00000002").startswith(said)


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "weights.safetensors"])
def test_a_pipe_is_not_opened(folder, name):
    (folder / "step-00000002" / name).unlink()
    os.mkfifo(folder / "step-00000002" / name)
    assert name in damage(folder / "step-00000002")
    assert find_checkpoint(folder)[0].name == "step-00000001"
