"""Write complexity.json and ladder.json: `python tests/golden/write_complexity.py`, if a variant is new; read the diff.

Counts the full network of every variant on the meta device, without the registry's shortcut, and NFNet's ladder.
"""

import json
from pathlib import Path

import torch

import normfree
from normfree.models import NFNET_LADDER, count_macs, nfnet_rung


def measure(name: str, **options) -> dict[str, int]:
    info = normfree.model_info(name, **options)
    with torch.device("meta"):
        model = normfree.create_model(name, **options)
    executed = count_macs(model, (3, info.test_size, info.test_size))
    return dict(params=sum(p.numel() for p in model.parameters()), macs=info.macs, macs_executed=executed)


def write(file: str, rows: dict[str, dict[str, int]]) -> None:
    lines = [f'  "{name}": {json.dumps(row)}' for name, row in rows.items()]
    Path(__file__).with_name(file).write_text("{\n" + ",\n".join(lines) + "\n}\n")


def ladder() -> dict[str, dict[str, int]]:
    """Every rung at every depth, without and with BatchNorm."""
    rungs = [(rung, f"f{k}", norm) for norm in (False, True) for rung in NFNET_LADDER for k in range(8)]
    models = {rung: nfnet_rung(rung[0], rung[1], batch_norm=rung[2]) for rung in rungs}
    return {f"{name} {rung[0]}": measure(name, **options) for rung, (name, options) in models.items()}


if __name__ == "__main__":
    write("complexity.json", {name: measure(name) for name in normfree.list_models()})
    write("ladder.json", ladder())
