"""A server of runs that end early, and their images; weights for `convert`."""

import pytest
from convertible import write_authors, write_theirs
from killed_runs import Server, photos


@pytest.fixture(scope="session")
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def photos_folder(tmp_path_factory):
    return photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def theirs(tmp_path):
    """A file of timm's, for `convert`."""
    return write_theirs(tmp_path)


@pytest.fixture
def authors(tmp_path):
    """A file of the authors', for `convert`."""
    return write_authors(tmp_path)
