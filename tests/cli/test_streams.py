"""Readers of standard output and standard error that go away."""

import io
import os
import subprocess
import sys

import pytest

from normfree.cli import main, models
from normfree.cli.streams import Lossy, lossy_errors, reader_gone

# a verb that says three things, and then what it has to say on standard output
TALKS = """
import sys
from normfree.cli import main, models
from normfree.words import tell

def run(argv):
    for line in "abc":
        tell(line, file=sys.stderr)
    if "fails" in argv:
        raise BrokenPipeError(32, "Broken pipe")
    tell("done")
    return 0

models.run = run
sys.exit(main(["models", *sys.argv[1:]]))
"""


@pytest.fixture
def no_reader():
    """The end of a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


def talk(*arguments, **streams) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", TALKS, *arguments], text=True, check=False, **streams)


def closed():
    os.close(2)


@pytest.mark.parametrize("how", ["no reader", "full", "closed"])
def test_what_cannot_be_said_is_lost_and_the_verb_goes_on(no_reader, how):
    with open("/dev/full", "w") as full:
        told = {"no reader": dict(stderr=no_reader), "full": dict(stderr=full), "closed": dict(preexec_fn=closed)}[how]
        done = talk(stdout=subprocess.PIPE, **told)
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_a_reader_of_the_output_that_has_gone_is_no_error(no_reader):
    done = talk(stdout=no_reader, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "a\nb\nc\n")
    assert talk("fails", stdout=no_reader, stderr=subprocess.PIPE).returncode == 0


def test_another_broken_pipe_is_an_error():
    done = talk("fails", capture_output=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("normfree: unexpected BrokenPipeError: [Errno 32] Broken pipe")


def test_a_notebook_has_no_descriptors(monkeypatch, capsys):
    def fail(argv):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(models, "run", fail)
    assert main(["models"]) == 1
    assert "unexpected BrokenPipeError" in capsys.readouterr().err


def test_who_reads(no_reader):
    read, write = os.pipe()
    assert reader_gone(io.FileIO(no_reader, "w", closefd=False))
    with io.FileIO(write, "w") as pipe:
        assert not reader_gone(pipe)
    os.close(read)
    assert not reader_gone(None)
    assert not reader_gone(io.StringIO())


def test_the_rest_of_a_stream_is_as_before(capsys):
    before = sys.stderr
    with lossy_errors():
        assert isinstance(sys.stderr, Lossy)
        assert sys.stderr.encoding == before.encoding
        assert sys.stderr.isatty() == before.isatty()
        print("here", file=sys.stderr)
    assert sys.stderr is before
    assert capsys.readouterr().err == "here\n"
