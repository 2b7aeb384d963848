"""A server of runs that end early, and their images."""

import pytest
from killed_runs import Server, photos


@pytest.fixture(scope="session")
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def photos_folder(tmp_path_factory):
    return photos(tmp_path_factory.mktemp("photos"))
