"""Errors that come from another process of the run are told apart from all others."""

import pytest
import torch.distributed as dist

from normfree.training.distributed import TIMEOUT, peer_failure

GLOO = "[../third_party/gloo/gloo/transport/tcp/"
ENDED = "another process of this run has ended before its time"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(f"{GLOO}pair.cc:547] Connection closed by peer [127.0.0.1]:3157"),
        RuntimeError(f"{GLOO}pair.cc:534] Connection reset by peer"),
        RuntimeError("Broken pipe"),  # of the store
        dist.DistBackendError("NCCL error in: x.cpp:1, remote process exited or there was a network error"),
        dist.DistNetworkError("Connection reset by peer"),
        dist.DistNetworkError("The client socket has failed to connect to any network address"),
    ],
)
def test_a_process_that_has_ended(error):
    assert peer_failure(error).startswith(ENDED)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(f"{GLOO}unbound_buffer.cc:78] Timed out waiting 1800000ms for recv operation to complete"),
        dist.DistStoreError("wait timeout after 1800000ms, keys: /attempt0/backend of 1"),
    ],
)
def test_a_process_that_does_not_answer(error):
    assert TIMEOUT.total_seconds() == 1800
    assert peer_failure(error) == "another process of this run has given no answer for 30 minutes"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader timed out after 60 seconds"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x3 and 2x2)"),
        RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed."),
        ValueError("Connection closed by peer"),
        OSError(28, "No space left on device"),
        KeyboardInterrupt(),
    ],
)
def test_any_other_error(error):
    assert peer_failure(error) is None
