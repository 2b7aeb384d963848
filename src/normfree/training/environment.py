"""The machine, the software and the command of a run."""

import datetime
import platform
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..version import __version__


def software() -> dict[str, str]:
    """Versions of normfree, torch and Python."""
    return dict(normfree=__version__, torch=torch.__version__, python=platform.python_version())


def basis(device: torch.device) -> dict[str, str]:
    """What a run's rounding depends on beside its recipe and images: versions, kind of device, threads."""
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
    else:
        kind = torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else ""
    return software() | dict(device=f"{device.type} ({kind})", threads=str(torch.get_num_threads()))


def basis_of(environment: Mapping[str, Any]) -> dict[str, str]:
    """The same from environment.json, for a run whose checkpoints do not have it."""
    kind = environment.get("gpu") or environment.get("cpu") or ""
    device = f"{str(environment.get('device')).partition(':')[0]} ({kind})"
    every = {name: environment.get(name) for name in ("normfree", "torch", "python", "threads")} | dict(device=device)
    return {name: str(value) for name, value in every.items() if "device" in environment and value is not None}


def environment(device: torch.device, processes: int) -> dict[str, str]:
    """Command, time of start, versions and machine."""
    entries = dict(
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **software(),
        system=f"{platform.system()} {platform.machine()}",
        device=str(device),
        processes=str(processes),
        threads=str(torch.get_num_threads()),
    )
    if device.type == "cuda":
        entries |= dict(gpu=torch.cuda.get_device_name(device), cuda=str(torch.version.cuda))
    else:
        entries["cpu"] = torch.backends.cpu.get_cpu_capability()
    return entries
