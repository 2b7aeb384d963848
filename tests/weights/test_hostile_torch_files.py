"""Files of ``torch.save`` that are damaged or hostile: refused in one line; nothing of theirs is executed."""

import contextlib
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from hostile_torch import CALLS, GREEDY, tensor, torch_file
from hostile_weights import outcomes, refused

import normfree
from normfree import UsageError
from normfree.weights import load_timm


def test_the_helpers_write_good_files(folder):
    torch_file("w.pth", tensor())
    with pytest.raises(UsageError, match=r"93 missing .*1 extra \(a\)"):  # it is read; it is only another network's
        load_timm(normfree.create_model("timm_test_nfnet"), "w.pth")


@pytest.mark.parametrize("case", CALLS | GREEDY)
def test_hostile_torch_files(folder, capsys, case):
    torch_file("w.pth", (CALLS | GREEDY)[case])
    assert all(outcomes("w.pth", capsys))
    with pytest.raises(UsageError) as error:
        load_timm(normfree.create_model("timm_test_nfnet"), "w.pth")
    assert "missing" not in str(error.value)
    assert "weights_only" not in str(error.value)  # torch's own message says how to run the file
    assert not (folder / "canary").exists()


@pytest.mark.parametrize("case", CALLS)
def test_the_calls_are_live(folder, case):
    torch_file("w.pth", CALLS[case])
    with zipfile.ZipFile("w.pth") as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))

        class Careless(pickle.Unpickler):
            def persistent_load(self, pid):
                return None

        with contextlib.suppress(Exception):  # what comes after the call does not matter
            Careless(archive.open(name)).load()
    assert (folder / "canary").is_dir()


def test_a_zip_bomb(folder, capsys):
    """100 MB of zeros behind the pickle take 100 kB; torch itself would unpack them."""
    torch_file("w.pth", tensor(), zipfile.ZIP_DEFLATED, more=bytes(10**8))
    assert os.path.getsize("w.pth") < 200_000
    assert all(outcomes("w.pth", capsys))


def test_other_files_of_torch(folder, capsys, timms):
    torch.save(timms, "old.pth", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(2, 2), "module.pth")
    torch.save([torch.ones(2)], "list.pth")
    torch.save({1: torch.ones(2)}, "number.pth")
    torch.save({"a\nb": torch.ones(2)}, "newline.pth")
    np.savez("archive.pth", a=np.ones(2))
    for name in ("module", "list", "number", "newline", "archive"):
        assert all(outcomes(f"{name}.pth", capsys)), name
    assert outcomes("old.pth", capsys) == [False, False, True]  # read; it is another network's than the third wants
    torch.save(dict(state_dict=timms, epoch=3), "wrapped.pth")
    model = load_timm(normfree.create_model("timm_test_nfnet", num_classes=10), "wrapped.pth")
    assert torch.equal(model.head.fc.weight, timms["head.fc.weight"])


@pytest.mark.parametrize("keep", [True, False])
def test_an_expanded_tensor_is_no_terabyte(folder, keep, timms):
    """A tensor that repeats one number is refused as well, as it may be of any size."""
    value = timms["head.fc.bias"]
    torch.save(timms | {"head.fc.bias": value if keep else value[:1].clone().expand(10)}, "w.pth")
    read = refused(lambda p: load_timm(normfree.create_model("timm_test_nfnet", num_classes=10), p), "w.pth")
    assert read is not keep
