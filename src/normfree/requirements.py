"""Versions of the packages that normfree needs, compared when it is imported: one line instead of a riddle later."""

import importlib.metadata
import importlib.util
import re

# the oldest versions with which the tests pass; a test compares them with pyproject.toml
OLDEST = {
    "torch": "2.11",
    "torchvision": "0.26",
    "numpy": "2.0",
    "pillow": "11.3",
    "tifffile": "2025.1.10",
    "safetensors": "0.5",
    "jsonargparse": "4.49",
    "docstring-parser": "0.17",
    "pyyaml": "6",
    "tqdm": "4.66",
    "matplotlib": "3.9",
    "scikit-learn": "1.5",
    "timm": "1.0.27",
    "huggingface-hub": "0.25",
}
MODULES = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}  # where the name is another one


def check() -> None:
    """Compare what is installed with :data:`OLDEST`.

    Raises:
        ImportError: a package is missing or too old; one line that names all of them.
    """
    wrong = [problem for name, oldest in OLDEST.items() if (problem := _wrong(name, oldest)) is not None]
    if wrong:
        needed = " ".join(f"'{name}>={OLDEST[name]}'" for name, _ in wrong)
        raise ImportError(f"normfree needs {', '.join(problem for _, problem in wrong)}: pip install {needed}")


def _wrong(name: str, oldest: str) -> tuple[str, str] | None:
    """A package and what is wrong with it."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if importlib.util.find_spec(MODULES.get(name, name.replace("-", "_"))) is not None:
            return None  # installed in a way that says no version
        return name, f"{name} {oldest} or later (it is not installed)"
    return (
        (name, f"{name} {oldest} or later ({version} is installed)") if _numbers(version) < _numbers(oldest) else None
    )


def _numbers(version: str) -> tuple[int, ...]:
    """``2.11.0a0+cu128`` is (2, 11), and so is ``2.11``: the numbers in front, without zeros at the end."""
    front = re.match(r"\d*(\.\d+)*", version)  # matches every text, if only its beginning
    numbers = [int(number) for number in front[0].split(".") if number] if front else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


check()
