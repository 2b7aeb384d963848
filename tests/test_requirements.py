"""Versions of packages: what is said at the import, and that it is what pyproject.toml says."""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from normfree import requirements

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def test_they_are_those_of_the_project():
    stated = dict(re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", line).groups() for line in PROJECT["dependencies"])
    assert stated == requirements.OLDEST


@pytest.fixture
def installed(monkeypatch):
    """Versions as they are, but for some."""
    real, others = importlib.metadata.version, {}

    def version(name):
        if name in others and others[name] is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return others.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    return others


def test_what_is_installed_here(installed):
    requirements.check()


@pytest.mark.parametrize("version", ["2.11", "2.11.0", "2.11.0a0+git1f", "2.11.0.dev20260101+cpu", "2.12", "3.0", "10"])
def test_versions_that_will_do(installed, version):
    installed["torch"] = version
    requirements.check()


@pytest.mark.parametrize("version", ["2.10.1", "2.9", "1.13.1+cu117", "2", "a"])
def test_a_version_that_is_too_old(installed, version):
    installed["torch"] = version
    with pytest.raises(ImportError) as caught:
        requirements.check()
    told = f"normfree needs torch 2.11 or later ({version} is installed): pip install 'torch>=2.11'"
    assert str(caught.value) == told


def test_all_of_them_are_named_in_one_line(installed, monkeypatch):
    installed |= dict(torchvision=None, pillow="9.5")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchvision" else find(name))
    with pytest.raises(ImportError) as caught:
        requirements.check()
    oldest = requirements.OLDEST
    assert str(caught.value) == (
        f"normfree needs torchvision {oldest['torchvision']} or later (it is not installed), "
        f"pillow {oldest['pillow']} or later (9.5 is installed): "
        f"pip install 'torchvision>={oldest['torchvision']}' 'pillow>={oldest['pillow']}'"
    )


def test_a_package_without_a_version_is_used(installed):
    installed["yaml"] = installed["pyyaml"] = None
    requirements.check()


def test_the_import_says_it_before_anything_else(tmp_path):
    """In a process without torch: the last line is the whole story."""
    code = "import sys; sys.modules['torch'] = None; import importlib.metadata as m; real = m.version\n"
    code += "def version(name):\n    return '1.0' if name == 'torch' else real(name)\n"
    code += "m.version = version\nimport normfree"
    here = dict(os.environ, PYTHONPATH=str(Path(requirements.__file__).parents[1]))
    how = dict(capture_output=True, text=True, cwd=tmp_path, env=here, check=False)
    done = subprocess.run([sys.executable, "-c", code], **how)
    assert done.returncode == 1
    told = "ImportError: normfree needs torch 2.11 or later (1.0 is installed): pip install 'torch>=2.11'"
    assert done.stderr.splitlines()[-1] == told
