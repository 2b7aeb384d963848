"""Calling the command, and one tiny run that several tests read."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from convertible import write_authors, write_theirs
from tiny_runs import FLAGS

from normfree.cli import main


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The only line on standard error, without its prefix."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("normfree: "), self.err
        return lines[0].removeprefix("normfree: ")


@pytest.fixture
def normfree(capsys):
    """The command as a function of its arguments."""

    def call(*arguments) -> Result:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """The folder of a run on digits, long enough to beat chance; not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    options = ["--train.steps", "60", "--optim.warmup_epochs", "1", "--optim.ema_decay", "0.9"]
    assert main(["train", *FLAGS, *options, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def theirs(tmp_path):
    """A file of timm's, for `convert`."""
    return write_theirs(tmp_path)


@pytest.fixture
def authors(tmp_path):
    """A file of the authors', for `convert`."""
    return write_authors(tmp_path)
