"""`python -m normfree` that sends itself a signal at some place: a test need not be fast enough to do it.

NORMFREE_TEST_SIGNAL is "count signal rank"; a process that torchrun has restarted goes on without.
NORMFREE_TEST_PLACE is what is counted: "step", the beginning of a step (the default), "evaluation", a batch of one, or
"start", the beginning of the command. With NORMFREE_TEST_GROUP the signal comes from another process and goes to all
processes of the group; SIGTERM twice, as from a scheduler and a launcher.
"""

import os
import signal
import subprocess
import sys

from normfree.cli import main, train
from normfree.tasks.classification import Accuracy
from normfree.training.step import TrainStep

at, number, rank = map(int, os.environ["NORMFREE_TEST_SIGNAL"].split())
PLACES = dict(step=(TrainStep, "__call__"), evaluation=(Accuracy, "update"), start=(train, "parse"))
seen = 0


def send():
    if "NORMFREE_TEST_GROUP" in os.environ:
        for _ in range(2 if number == signal.SIGTERM else 1):
            command = ["kill", f"-{number}", "--", f"-{os.getpgid(0)}"]
            subprocess.run(command, check=True, start_new_session=True)
    else:
        os.kill(os.getpid(), number)


def counting(call):
    def counted(*args, **kwargs):
        global seen
        seen += 1
        if (
            seen == at
            and int(os.environ.get("RANK", 0)) == rank
            and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        ):
            send()
        return call(*args, **kwargs)

    return counted


if __name__ == "__main__":
    owner, name = PLACES[os.environ.get("NORMFREE_TEST_PLACE", "step")]
    setattr(owner, name, counting(getattr(owner, name)))
    sys.exit(main())
