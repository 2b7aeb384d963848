"""Every test starts from the same seed and sums in the same order; the command, and one run that many tests read.

selection.py says which tests run.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import clutter
import doc_pages
import pytest
import selection
import torch
from tiny_runs import FLAGS

from normfree.cli import main
from normfree.kernels import library

ROOT = Path(__file__).parents[1]

# The order of a sum depends on the number of threads. `make test-machines` asks for others.
torch.set_num_threads(int(os.environ.get("NORMFREE_TEST_THREADS", "1")))


def pytest_addoption(parser):
    selection.options(parser)


def pytest_configure(config):
    config.pluginmanager.register(selection.Selection(config))
    config.pluginmanager.register(doc_pages.Tally())


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def clean_root():
    """Tests write into folders of their own: whatever appears in the root of the repository is named at the end."""
    before = clutter.names(ROOT)
    yield
    new = clutter.appeared(ROOT, before)
    assert not new, f"tests have written into {ROOT}: {', '.join(new)}"


@pytest.fixture(autouse=True, scope="session")
def compiled_here(tmp_path_factory):
    """What torch.compile keeps on disk does not say which vector instructions it is for."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture
def portable(monkeypatch):
    """Without the compiled kernels: what a compiler or an exporter sees is compared with the same operations."""
    monkeypatch.setattr(library, "_load", lambda: (None, "turned off by a test"))


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
