"""The guard of the root of the repository, see ``clean_root`` in conftest.py: what it names and what it lets be."""

import clutter


def test_what_appears_is_named(tmp_path):
    (tmp_path / "notes.txt").touch()  # someone else's, from before
    before = clutter.names(tmp_path)
    for name in (".pytest_cache", "__pycache__", "build"):
        (tmp_path / name).mkdir()
    assert clutter.appeared(tmp_path, before) == []
    (tmp_path / "runs").mkdir()
    (tmp_path / "augment.png").touch()
    assert clutter.appeared(tmp_path, before) == ["augment.png", "runs"]


def test_what_goes_away_is_not_named(tmp_path):
    (tmp_path / "notes.txt").touch()
    before = clutter.names(tmp_path)
    (tmp_path / "notes.txt").unlink()
    assert clutter.appeared(tmp_path, before) == []
