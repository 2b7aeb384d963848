"""Where and with what a run was computed."""

import datetime
import platform
import shlex
import sys
from pathlib import Path

import torch

from ..version import __version__


def environment(device: torch.device, processes: int) -> dict[str, str]:
    """Command, time of start, versions and machine."""
    found = dict(
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        normfree=__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        device=str(device),
        processes=str(processes),
        threads=str(torch.get_num_threads()),
    )
    if device.type == "cuda":
        found |= dict(gpu=torch.cuda.get_device_name(device), cuda=str(torch.version.cuda))
    else:
        found["cpu"] = torch.backends.cpu.get_cpu_capability()
    return found
