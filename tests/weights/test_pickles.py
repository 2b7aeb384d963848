"""Pickles are measured as they are hashed, compared and copied; what checkpoints hold is not refused for it."""

import argparse
import pickle
from collections import Counter, OrderedDict, defaultdict

import hostile_bombs
import hostile_pickles as hostile
import numpy as np
import pytest
import torch

from normfree import UsageError
from normfree.weights import read_arrays
from normfree.weights.file import read_weights_file
from normfree.weights.pickles import check_opcodes
from normfree.weights.state_dict import find_state
from normfree.weights.torch_file import Stored, read_torch


def usual() -> dict:
    """Things that scripts save beside the weights."""
    return dict(
        state_dict=OrderedDict(a=torch.ones(2), b=torch.zeros(3)),
        optimizer=dict(state={number: dict(step=number, m=torch.ones(2)) for number in range(50)}, param_groups=[{}]),
        args=argparse.Namespace(lr=0.1, sizes=(1, 2), nested=dict(a=[(1, (2, (3,)))])),
        milestones=Counter([10, 20, 20]),
        by_pair={(number, "a"): number for number in range(500)},
        some={1.5, None, True, "a", b"b", (1, 2), frozenset([3])},
        random=(3, tuple(range(625)), None),
        large={2**70: 2**80, -(2**62): 1},
        grown=defaultdict(list, a=[1]),
        numbers=[np.float64(1.5), np.int64(3)],
    )


@pytest.mark.parametrize(("protocol", "zipped"), [(2, True), (4, True), (5, True), (2, False)])
def test_what_checkpoints_hold_is_read(tmp_path, protocol, zipped):
    path = tmp_path / "a.pth"
    torch.save(usual(), path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    found = read_weights_file(path).tensors
    assert {name: value.tolist() for name, value in found.items()} == dict(a=[1, 1], b=[0, 0, 0])


@pytest.mark.parametrize("bomb", hostile_bombs.NESTED)
@pytest.mark.parametrize("place", hostile_bombs.HASHED)
def test_what_is_hashed_is_bounded(bomb, place):
    content = hostile_bombs.HASHED[place] % hostile_bombs.NESTED[bomb] + b"."
    with pytest.raises(pickle.UnpicklingError, match=r"keys and members of sets have more than 10000 parts"):
        check_opcodes(b"\x80\x04" + content, 10_000)
    if bomb != "sets":  # which hash their members
        check_opcodes(b"\x80\x04" + hostile_bombs.NESTED[bomb] + b".", 10_000)


def test_tensors_that_share_numbers_may_do_so_a_few_times(tmp_path):
    weight = torch.ones(1000)
    torch.save({f"w{number}": weight for number in range(4)}, tmp_path / "four.pth")
    assert len(read_weights_file(tmp_path / "four.pth").tensors) == 4
    torch.save({f"w{number}": weight for number in range(100)}, tmp_path / "many.pth")
    with pytest.raises(UsageError, match=r"many\.pth: its tensors hold more than 4 times the bytes of the file"):
        read_weights_file(tmp_path / "many.pth")


def test_arrays_that_share_numbers_may_do_so_a_few_times(tmp_path):
    weight, path = np.ones(1000, np.float32), tmp_path / "a.npz"
    path.write_bytes(pickle.dumps({"m": {f"w{number}": weight for number in range(4)}}))
    assert len(read_arrays(path)["m"]) == 4
    path.write_bytes(pickle.dumps({"m": {f"w{number}": weight for number in range(100)}}))
    with pytest.raises(UsageError, match=r"a\.npz: its arrays hold more than 4 times the bytes of the file"):
        read_arrays(path)


def test_a_text_is_encoded_as_often_as_it_stands_in_the_file(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(hostile_bombs.of_pickles()["a text encoded 3000 times"])
    with pytest.raises(UsageError, match=r"its arrays hold more bytes than the file"):
        read_arrays(path)
    for protocol in (0, 1, 2):  # which write bytes as text
        path.write_bytes(pickle.dumps({"m": {"w": np.arange(256, dtype=np.uint8)}}, protocol))
        assert read_arrays(path)["m"]["w"].tolist() == list(range(256))


def test_a_storage_that_is_not_aligned_is_copied_once(tmp_path):
    path = tmp_path / "a.pth"
    torch.save(dict(a=torch.arange(6.0)[:3], b=torch.arange(3.0)), path, _use_new_zipfile_serialization=False)
    file = read_torch(path)
    tensors = file.tensors(file.content)
    assert tensors["a"].tolist() == tensors["b"].tolist() == [0, 1, 2]
    again = file.tensor(file.content["a"], "a")
    assert again.data_ptr() == tensors["a"].data_ptr()


def test_mappings_in_one_another(monkeypatch):
    inner = dict(w=Stored(None, None, None, None, True))
    content = {f"{number}": inner for number in range(10)}
    assert len(find_state({"model": dict(a=inner), "b": 1}, Stored, "x")[0]) == 1
    monkeypatch.setattr("normfree.weights.state_dict.MAX_CHECKPOINT_ENTRIES", 19)
    with pytest.raises(UsageError, match=r"^x holds more than 19 entries in its mappings$"):
        find_state(content, Stored, "x")


def test_messages_do_not_write_down_what_has_no_end(tmp_path):
    path = tmp_path / "a.npz"
    bomb = hostile_bombs.NESTED["wide"]
    for value in (hostile.array(shape=bomb), hostile.array(kind=hostile.dtype(bomb))):
        path.write_bytes(hostile.parameter(value))
        with pytest.raises(UsageError, match=r"not a pickle of numpy arrays: (the shape|a dtype of type)") as caught:
            read_arrays(path)
        assert len(str(caught.value)) < 300
