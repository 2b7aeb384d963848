"""Print the oldest versions that pyproject.toml allows, one a line, for pip: what `make test-floors` installs.

The tools that tests need have the versions of constraints.txt, since nobody runs normfree with them.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = ("onnx", "depth", "detection", "heic", "tiff", "tensorboard")
TOOLS = ("pytest", "pytest-xdist", "hypothesis", "dill")


def oldest(line: str) -> str:
    """``numpy>=2.0`` as ``numpy==2.0``."""
    name, version = re.fullmatch(r"([\w-]+(?:\[\w+\])?)>=([\d.]+)", line).groups()
    return f"{name}=={version}"


def main() -> None:
    """Print them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for name in EXTRAS for line in project["optional-dependencies"][name])]
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    tools = [line for line in pinned if line.partition("==")[0] in TOOLS]
    print("\n".join([*map(oldest, lines), *tools]))


if __name__ == "__main__":
    main()
