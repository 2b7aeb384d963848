"""A study of four runs of two steps on digits, and the command."""

import pytest
import yaml
from tiny_studies import AXES, SET

from normfree.cli import main


@pytest.fixture
def write(tmp_path):
    """Writes a study's file of SET and AXES, of which arguments replace parts; returns its path."""

    def write(name: str = "tiny", **parts) -> str:
        content = dict(base="digits", set=SET, axes=AXES) | parts
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return str(path)

    return write


@pytest.fixture
def normfree(capsys, tmp_path, monkeypatch):
    """The command as a function of its arguments: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return call
