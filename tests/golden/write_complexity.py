"""Write complexity.json: `python tests/golden/write_complexity.py`. Run it when a variant is added; read the diff.

Counts the full network of every variant on the meta device, without the registry's shortcut.
"""

import json
from pathlib import Path

import torch

import normfree
from normfree.models import count_macs


def measure(name: str) -> dict[str, int]:
    info = normfree.model_info(name)
    with torch.device("meta"):
        model = normfree.create_model(name)
    executed = count_macs(model, (3, info.test_size, info.test_size))
    return dict(params=sum(p.numel() for p in model.parameters()), macs=info.macs, macs_executed=executed)


if __name__ == "__main__":
    rows = [f'  "{name}": {json.dumps(measure(name))}' for name in normfree.list_models()]
    Path(__file__).with_name("complexity.json").write_text("{\n" + ",\n".join(rows) + "\n}\n")
