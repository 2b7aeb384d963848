"""Recipe files made up for a test."""

import pytest


@pytest.fixture
def write(tmp_path):
    """Text -> path of a recipe file."""

    def to_file(text: str) -> str:
        (tmp_path / "mine.yaml").write_text(text)
        return str(tmp_path / "mine.yaml")

    return to_file
