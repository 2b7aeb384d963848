"""Choosing the verb, and turning errors into one line and an exit code."""

import errno
import importlib
import sys
import traceback
from collections.abc import Sequence

from ..errors import RunFailed, UsageError, did_you_mean
from ..version import __version__
from ..words import tell
from .streams import discard, lossy_errors, printable_notes, reader_gone, writable_output

VERBS = {
    "train": "train a network by a recipe",
    "find-lr": "suggest a learning rate by a range test",
    "search": "search for hyper-parameters of a recipe",
    "study": "train a recipe with several settings and seeds, into a table and a plot",
    "eval": "measure a trained network",
    "predict": "classify images with a trained network",
    "report": "write a page about a training run",
    "export": "write a network for ONNX runtimes, or as a torch.export archive",
    "augment": "draw what the augmentation of a recipe makes of images",
    "noise-scale": "measure from which batch size on larger batches save few steps",
    "spp": "draw and judge how the signal propagates through a network",
    "convert": "weights of the authors, of timm and of normfree, each as the others",
    "convert-model": "take BatchNorm and its like out of any network",
    "bench": "time and memory of training on this machine, and the papers' tables of speed",
    "figures": "draw the signal propagation plots of the first paper",
    "published": "draw the papers' figures of accuracy with your runs beside",
    "models": "list the networks with their size and cost",
    "recipes": "list the recipes, or print one",
}


BAD_NAMES = (errno.ENAMETOOLONG, errno.ELOOP, errno.EILSEQ)  # of files, which were never there
SHOWN = 100  # letters of such a name


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0 done, 1 a run failed, 2 unusable input, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with lossy_errors(), writable_output(utf8="--json" in arguments), printable_notes():
        return _run(arguments)


def _run(arguments: list[str]) -> int:
    """A verb and its exit code, errors as one line."""
    try:
        code = _dispatch(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError as error:
        if not reader_gone(sys.stdout):
            return _unexpected(arguments, error)
        discard(sys.stdout)  # head, less
        return 0
    except KeyboardInterrupt as error:
        return _say(arguments, str(error) or "interrupted", 130)
    except UsageError as error:
        return _say(arguments, str(error), 2)
    except RunFailed as error:
        return _say(arguments, str(error), 1)
    except OSError as error:
        place, wrong = str(error.filename or "input or output"), error.strerror or str(error)
        if error.errno in BAD_NAMES:
            return _say(arguments, f"{place[:SHOWN]}{'...' if len(place) > SHOWN else ''}: {wrong}", 2)
        return _say(arguments, f"{place}: {wrong}", 1)
    except UnicodeEncodeError as error:
        part = error.object[max(0, error.start - SHOWN // 2) : error.end + SHOWN // 2]
        return _say(arguments, f"{part!r} is no text in UTF-8, which is needed here", 2)
    except Exception as error:
        from ..training.memory import no_memory

        if no_memory(error):
            return _say(arguments, "memory is too small; lower the batch, --train.micro_batch or the size of images", 1)
        return _unexpected(arguments, error)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"normfree {__version__}")
        return 0
    verb = arguments[0]
    if verb not in VERBS:
        raise UsageError(f"command {verb!r} is unknown; {did_you_mean(verb, VERBS, 'see normfree --help')}")
    return importlib.import_module(f".{verb.replace('-', '_')}", __package__).run(arguments[1:])


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = "\n".join(f"  {verb:{width}}  {text}" for verb, text in VERBS.items())
    return (
        f"usage: normfree COMMAND [options]\n\nNormalizer-Free networks for PyTorch.\n\n{lines}\n\n"
        "normfree COMMAND --help says more; normfree train, with nothing else, trains a small network on real images.\n"
        "Exit codes: 0 done, 1 a run failed, 2 unusable input, 130 interrupted."
    )


def _unexpected(arguments: list[str], error: Exception) -> int:
    message = f"unexpected {type(error).__name__}: {' '.join(str(error).split())}"
    return _say(arguments, f"{message} (--traceback shows where)", 1)


def _say(arguments: list[str], message: str, code: int) -> int:
    if "--traceback" in arguments:
        traceback.print_exc()
    tell(f"normfree: {message}", file=sys.stderr)
    return code
