"""Reads hostile files, each in a process of its own that is ended when it takes too long; a line of JSON for each.

Run as ``python hostile_readers.py FOLDER``: below it lie FOLDER/READER/NAME/*. Nothing is imported after a process was
made for a file, so what it takes is what reading takes.
"""

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from normfree.cli import main
from normfree.data import UnreadableImage, decode, decode_image
from normfree.data.decode import raw_values
from normfree.data.exif import header
from normfree.data.masks import read_values
from normfree.data.objects import open_objects
from normfree.data.pairs import open_pairs, read_depth
from normfree.data.pixels import PixelTransform
from normfree.data.shards import shards
from normfree.data.tables import read_table
from normfree.errors import RunFailed, UsageError
from normfree.recipes import load_recipe
from normfree.weights.file import read_weights_file
from normfree.words import printable

SECONDS, WAIT, ROOM = 20, 60, 8 << 30  # of the processor; of the clock; bytes of addresses beside what is there


def image(folder: Path) -> None:
    (path,) = folder.iterdir()
    header(str(path))
    raw_values(path)
    for channels in (1, 3):
        view = PixelTransform(64, 64, (0.5,) * channels, (0.5,) * channels, short_side=96)
        view(decode_image(path, channels), torch.zeros(1, 1))


def mask(folder: Path) -> None:
    (path,) = folder.iterdir()
    read_values(str(path))


def depth(folder: Path) -> None:
    (path,) = folder.iterdir()
    read_depth(str(path))


def shard(folder: Path) -> None:
    path = folder / "train.tar"
    train, _, _ = shards(f"{path},{path}")
    for index in range(len(train)):
        train.image(index)


def coco(folder: Path) -> None:
    source = open_objects(f"coco:{folder}")
    for index in range(len(source.train)):
        source.train.pair(index)


def nyu(folder: Path) -> None:
    source = open_pairs(f"nyu:{folder / 'nyu_depth_v2_labeled.mat'}", "depth")
    for split in (source.train, source.test):
        for index in range(len(split)):
            split.pair(index)


def csv(folder: Path) -> None:
    from normfree.data.tables import labelled

    labelled(read_table(folder / "labels.csv"), "classes")


def weights(folder: Path) -> None:
    (path,) = folder.iterdir()
    read_weights_file(path)
    by_command(["convert", str(path), "x.npz" if path.suffix == ".safetensors" else "x.safetensors", "--quiet"])


def yaml(folder: Path) -> None:
    load_recipe(str(folder / "r.yaml"))


def run(folder: Path) -> None:
    by_command(["report", str(folder), "--out", "report.html"])


def exported(folder: Path) -> None:
    (path,) = folder.iterdir()
    Image.new("L", (8, 8)).save("a.png")
    by_command(["predict", str(path), "a.png"])


def by_command(argv: list[str]) -> None:
    """A verb: a UsageError of its own where it ends with exit code 2."""
    out, err = os.pipe()
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = told = open(err, "w")  # noqa: SIM115
    code = main(argv)
    told.close()
    sys.stderr = sys.__stderr__
    message = os.read(out, 100_000).decode()
    if code == 2:
        raise UsageError(message.removesuffix("\n").removeprefix("normfree: "))
    assert code == 0, f"exit code {code}: {message}"


READERS: dict[str, Callable[[Path], None]] = dict(
    image=image, mask=mask, depth=depth, shard=shard, coco=coco, nyu=nyu, csv=csv, yaml=yaml, run=run
)
READERS |= dict.fromkeys(("pickle", "torch", "torch before 1.6", "safetensors"), weights)
READERS |= dict.fromkeys(("pt2", "onnx"), exported)


def outcome(read: Callable[[Path], None], folder: Path) -> str:
    """ "read", "refused: ...", or what else happened."""
    try:
        read(folder)
        return "read"
    except (UsageError, UnreadableImage) as error:
        message = printable(str(error))  # as it is told
        return f"refused: {message}" if len(message) < 3000 else f"a long line: {message:.300}"
    except RunFailed as error:
        return f"failed: {error}"
    except BaseException:
        return traceback.format_exc()


def apart(read: Callable[[Path], None] | None, folder: Path, work: Path) -> dict:
    """What a process of its own makes of a file, its seconds and its bytes."""
    out, into = os.pipe()
    child = os.fork()
    if not child:
        os.close(out)
        os.chdir(work)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(WAIT)
        told = "read" if read is None else outcome(read, folder)
        os.write(into, told.encode("utf-8", "backslashreplace")[:60_000])
        os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as pipe:
        told = pipe.read().decode()
    _, status, used = os.wait4(child, 0)
    if os.WIFSIGNALED(status):
        told = f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return dict(outcome=told, seconds=used.ru_utime + used.ru_stime, megabytes=used.ru_maxrss / 1024)


def run_all(root: Path, work: Path) -> None:
    usual = apart(None, root, work)["megabytes"]
    for folder in sorted(root.glob("*/*")):
        found = apart(READERS[folder.parent.name], folder, work)
        found["megabytes"] -= usual
        made = [path for place in (work, folder) for path in place.iterdir() if "canary" in path.name]
        found["ran"] = [path.name for path in made]
        for path in made:
            path.rename(path.with_name(f"made by {folder.name}"))
        print(json.dumps(dict(reader=folder.parent.name, name=folder.name, **found)), flush=True)


def import_all() -> None:
    """What readers import when they are asked, so that each file does not pay for it."""
    verbs = [f"normfree.cli.{verb}" for verb in ("convert", "predict", "report")]
    for name in (
        *verbs,
        "torch.export.pt2_archive._package",
        "onnxruntime",
        "h5py",
        "scipy.io",
        "tifffile",
        "pycocotools.mask",
    ):
        with contextlib.suppress(ImportError):  # an extra
            importlib.import_module(name)
    decode.known_formats()


if __name__ == "__main__":
    torch.set_num_threads(1)
    import_all()
    os.environ["XDG_CACHE_HOME"] = sys.argv[2]
    run_all(Path(sys.argv[1]), Path(sys.argv[2]))
