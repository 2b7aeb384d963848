"""The reader of pickles builds arrays and nothing else, whatever the file says."""

import contextlib
import copyreg
import os
import pickle
import struct
import subprocess
import sys
import textwrap

import dill
import hostile_pickles as hostile
import numpy as np
import pytest
from selection import share

from normfree import UsageError
from normfree.weights import read_arrays

CALLS, MALFORMED = hostile.calls("canary"), hostile.malformed()
GOOD = {
    "net/~/conv": {"w": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "b": np.ones(4, np.float64)},
    "net": {"skip_gain": np.float32(0.5), "steps": np.arange(3), "flag": np.array([True, False])},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Relative paths, such as a hostile pickle's canary, are inside of a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refuse(folder, content: bytes) -> str:
    path = folder / "weights.npz"
    path.write_bytes(content)
    with pytest.raises(UsageError) as error:
        read_arrays(path)
    assert str(path) in str(error.value)
    return str(error.value)


def check_good(folder, content: bytes):
    path = folder / "good.npz"
    path.write_bytes(content)
    got = read_arrays(path)
    assert got.keys() == GOOD.keys()
    for module, expected in GOOD.items():
        assert got[module].keys() == expected.keys()
        for name, array in expected.items():
            assert isinstance(got[module][name], np.ndarray)
            assert got[module][name].dtype == array.dtype
            np.testing.assert_array_equal(got[module][name], array, strict=True)
    return got


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("writer", [pickle, dill], ids=["pickle", "dill"])
def test_good_files(folder, writer, protocol):
    got = check_good(folder, writer.dumps(GOOD, protocol=protocol))
    assert not any(array.flags.writeable for inner in got.values() for array in inner.values())


def test_the_helpers_write_good_arrays(folder):
    (folder / "good.npz").write_bytes(hostile.parameter(hostile.array()))
    assert read_arrays("good.npz")["m"]["w"].tolist() == [0.0, 0.0]  # so that refusals below are for the one change


@pytest.mark.parametrize("attack", CALLS)
def test_calls_are_refused_and_do_not_run(folder, attack):
    refuse(folder, CALLS[attack])
    assert not (folder / "canary").exists()


@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")  # numpy 2 warns of its old module's name
@pytest.mark.parametrize("attack", CALLS)
def test_the_calls_are_live(folder, attack):
    with contextlib.suppress(Exception):  # what comes after the call does not matter
        pickle.loads(CALLS[attack])
    assert (folder / "canary").is_dir()


@pytest.mark.parametrize("attack", MALFORMED)
def test_malformed_pickles_are_refused(folder, attack):
    refuse(folder, MALFORMED[attack])


def test_the_refusal_quotes_the_name(folder):
    assert "posix.mkdir" in refuse(folder, CALLS["os.mkdir at the top"])
    assert "torch.Tensor" in refuse(folder, MALFORMED["class of another module"])
    assert "truncated" in refuse(folder, b"")


class Sub(np.ndarray):
    pass


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(2).view(Sub),
        np.ma.zeros(2),
        np.rec.array([(1, 2.0)]),
        np.array([{}, None]),
        np.array(["a"]),
        np.array([b"a"]),
        np.zeros(2, complex),
        np.zeros(2, "f4,f4"),
        np.datetime64("2021-02-11"),
    ],
    ids=lambda value: f"{type(value).__name__}-{value.dtype}",
)
def test_other_arrays_are_refused(folder, value):
    for protocol in range(6):
        refuse(folder, pickle.dumps({"m": {"w": value}}, protocol=protocol))


@pytest.mark.parametrize("protocol", range(6))
def test_truncated_files_are_refused(folder, protocol):
    content = pickle.dumps(GOOD, protocol=protocol)
    for length in [*range(0, len(content) - 8, 7), *range(len(content) - 8, len(content))]:
        refuse(folder, content[:length])


@pytest.mark.scaled
def test_damaged_files_are_refused_or_read(folder):
    content, rng = pickle.dumps(GOOD, protocol=4), np.random.default_rng(0)
    refused = 0
    for _ in range(share(500)):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] = rng.integers(256)
        (folder / "weights.npz").write_bytes(damaged)
        try:
            read_arrays("weights.npz")
        except UsageError:
            refused += 1
    assert share(500) // 5 < refused < share(500)  # a flipped bit of a number cannot be seen


@pytest.mark.parametrize("attack", ["BUILD on a stand-in", "slots of a stand-in", "slots of an array", "object array"])
def test_a_bad_file_does_not_change_the_next_one(folder, attack):
    refuse(folder, MALFORMED[attack])
    check_good(folder, pickle.dumps(GOOD, protocol=2))


def test_changed_stand_ins_do_not_survive_the_file(folder):
    changes = b""
    for function in ("_reconstruct", "scalar"):
        state = b"N}" + hostile.text("__defaults__") + b")" + b"s" + hostile.text("__kwdefaults__") + b"}s\x86"
        changes += hostile.name("numpy.core.multiarray", function) + state + b"b0"
    refuse(folder, b"\x80\x04" + changes + b"].")
    check_good(folder, pickle.dumps(GOOD, protocol=2))


@pytest.mark.parametrize("cached", [False, True])
def test_registered_extensions_are_refused(folder, cached):
    code = 0xF7
    copyreg.add_extension("posix", "mkdir", code)
    try:
        if cached:  # another reader in this process has resolved it before
            assert pickle.loads(b"\x80\x02\x82" + bytes([code]) + b".") is os.mkdir
        refuse(folder, hostile.parameter(b"\x82" + bytes([code]) + hostile.text("canary") + b"\x85R"))
    finally:
        copyreg.remove_extension("posix", "mkdir", code)
    assert not (folder / "canary").exists()


def run_alone(folder, content: bytes) -> str:
    """The reader's verdict in a process of its own, which a crash or a greedy allocation cannot spoil."""
    (folder / "weights.npz").write_bytes(content)
    script = """
        import resource
        from normfree.weights import read_arrays
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            read_arrays("weights.npz")
            verdict = "read"
        except Exception as error:
            verdict = type(error).__name__
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(verdict, "small" if grown < 300 * 1024 else f"grew by {grown // 1024} MiB")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=folder, capture_output=True, text=True)
    return done.stdout.strip() or f"ended with {done.returncode}"


def test_a_huge_memo_index_takes_no_memory(folder):
    content = b"\x80\x04" + b"}r" + struct.pack("<I", 2**27) + b"0]."  # 2 GiB in a reader whose memo is a table
    assert run_alone(folder, content) == "UsageError small"


@pytest.mark.parametrize("depth", [2_000, 2_000_000])
def test_deep_nesting_does_not_crash(folder, depth):
    assert run_alone(folder, b"\x80\x04})" + b"\x85" * depth + b"}s.").startswith("UsageError")


def test_paths_that_cannot_be_read(folder):
    for path in (folder / "missing.npz", folder):
        with pytest.raises(UsageError, match=f"cannot read {path}"):
            read_arrays(path)


def test_a_true_npz_archive_is_refused(folder):
    np.savez(folder / "archive.npz", w=np.zeros(2))
    with pytest.raises(UsageError, match=r"archive.npz"):
        read_arrays(folder / "archive.npz")
