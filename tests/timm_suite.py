"""timm's own tests of models, pointed at ours: `python tests/timm_suite.py` (or `make timm-suite`), half an hour.

They come with timm's source distribution, which pip downloads in the installed version; `--source` takes an
unpacked one. `--models` chooses by shell patterns, `--giga` leaves out what takes more billion multiply-adds.
Nothing is fetched, as in timm's CI. Left out: TorchScript, which PyTorch has deprecated in favour of torch.export and
which these models do not support.
"""

import argparse
import importlib.metadata
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import normfree

MODELS = "NORMFREE_TIMM_SUITE"  # how the names reach the pytest process


def download(folder: Path) -> Path:
    """The unpacked source distribution."""
    package = f"timm=={importlib.metadata.version('timm')}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", package]
    subprocess.run([*command, "--dest", str(folder)], check=True)
    with tarfile.open(next(folder.glob("timm-*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return next(path for path in folder.glob("timm-*") if path.is_dir())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=["*"], nargs="+", help="shell patterns of our names, for example nfnet_f0")
    parser.add_argument("--giga", type=float, default=25.0, help="billion multiply-adds at most; default: 25")
    parser.add_argument("--source", type=Path, help="folder of timm's unpacked source distribution")
    options, rest = parser.parse_known_args()
    patterns = [name for pattern in options.models for name in normfree.list_models(pattern)]
    chosen = [name for name in patterns if normfree.model_info(name).macs <= 1e9 * options.giga]
    with tempfile.TemporaryDirectory() as folder:
        source = options.source or download(Path(folder))
        here = str(Path(__file__).resolve().parent)
        environment = os.environ | {
            "GITHUB_ACTIONS": "true",
            MODELS: " ".join(chosen),
            "PYTHONPATH": os.pathsep.join((here, *sys.path[1:])),
        }
        command = [sys.executable, "-m", "pytest", "-p", "timm_suite", "-c", os.devnull, "--rootdir", str(source)]
        command += ["-W", "ignore", "-q", "-k", "normfree_ and not torchscript", *rest]
        return subprocess.run([*command, str(source / "tests" / "test_models.py")], env=environment).returncode


def _point_at_ours() -> None:
    """In the pytest process, before timm's tests are imported: their list of models is ours."""
    import timm

    import normfree.timm

    listed, chosen = timm.list_models, {normfree.timm.PREFIX + name for name in os.environ[MODELS].split()}

    def list_models(filter: str = "", module: object = "", **options: object) -> list[str]:
        names = listed(normfree.timm.PREFIX + "*", **options) if not filter and not options.get("pretrained") else []
        return [name for name in names if name.partition(".")[0] in chosen]

    timm.list_models = list_models
    timm.list_pretrained = lambda *args, **options: []


if __name__ == "__main__":
    sys.exit(main())
elif MODELS in os.environ:  # pytest -p
    _point_at_ours()
