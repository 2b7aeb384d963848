"""Every test starts from the same seed and sums in the same order; selection.py says which tests run."""

import os

import doc_pages
import pytest
import selection
import torch

from normfree.kernels import library

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
def compiled_here(tmp_path_factory):
    """What torch.compile keeps on disk does not say which vector instructions it is for."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture
def portable(monkeypatch):
    """Without the compiled kernels: what a compiler or an exporter sees is compared with the same operations."""
    monkeypatch.setattr(library, "_load", lambda: (None, "turned off by a test"))
