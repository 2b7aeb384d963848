"""The notebooks run from above to below, and the site lists every page."""

import json
import os
import re
import subprocess
import sys

import pytest
from doc_pages import ROOT, anchors, notebook_script

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
by_name = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)


@pytest.mark.full
@pytest.mark.slow
@by_name
def test_a_notebook_runs(file, tmp_path):
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | dict(PYTHONPATH=os.pathsep.join(paths), MPLBACKEND="agg")
    command = [sys.executable, "-c", notebook_script(file)]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]


@by_name
def test_a_notebook_is_small_and_shows_what_it_prints(file):
    assert file.stat().st_size < 200_000
    cells = json.loads(file.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert sum(bool(cell["outputs"]) for cell in code) >= 3
    assert not any(output["output_type"] == "error" for cell in code for output in cell["outputs"])
    for cell in cells:
        for target in re.findall(r"\]\(([^)\s]+)\)", "".join(cell["source"])):
            path, _, anchor = target.partition("#")
            other = file.parent / path
            assert other.exists(), target
            assert not anchor or anchor in anchors(other), target


def test_the_site_lists_every_page_once():
    listed = re.findall(r"^ +- .*: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    made = {"index.md", "contributing.md", "changelog.md", *(f"notebooks/{file.stem}.md" for file in NOTEBOOKS)}
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert sorted(listed) == sorted(pages | made)
