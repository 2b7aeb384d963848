"""`python -m normfree` that sends itself a signal when a step begins: a test need not be fast enough to do it.

NORMFREE_TEST_SIGNAL is "step signal rank"; a process that torchrun has restarted goes on without.
"""

import os
import sys

from normfree.cli import main
from normfree.training.step import TrainStep

at, number, rank = map(int, os.environ["NORMFREE_TEST_SIGNAL"].split())
call, seen = TrainStep.__call__, 0


def counted(self, *args, **kwargs):
    global seen
    seen += 1
    if (
        seen == at
        and int(os.environ.get("RANK", 0)) == rank
        and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    ):
        os.kill(os.getpid(), number)
    return call(self, *args, **kwargs)


if __name__ == "__main__":
    TrainStep.__call__ = counted
    sys.exit(main())
