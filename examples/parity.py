"""What each implementation makes of the released NFNets' weights: `python examples/parity.py` (a minute; needs timm).

Parameters and inputs are those of the golden files (tests/golden), whose outputs come from the authors' code.
"""

import sys
from pathlib import Path

import timm
import torch

import normfree
from normfree.weights import load_haiku, to_timm

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import golden_data


@torch.no_grad()
def main() -> None:
    for file, name in golden_data.MODELS.items():
        if not name.startswith("nfnet"):
            continue
        golden = golden_data.load(file)
        ours = normfree.create_model(name, num_classes=10).eval()
        load_haiku(ours, golden_data.parameters(golden))
        theirs = timm.create_model(f"dm_{name}", num_classes=10).eval()
        theirs.load_state_dict(to_timm(ours))
        variant = normfree.create_model(f"timm_dm_{name}", num_classes=10).eval()
        normfree.weights.load_timm(variant, to_timm(ours))
        x = golden_data.images(file, len(golden["logits"]))
        for what, model in (("normfree", ours), ("timm", theirs), ("normfree's timm variant", variant)):
            print(f"{name} {what:24} {golden_data.relative(model(x), golden['logits']):.1e}")
        print(f"{name} {'variant against timm':24} {golden_data.relative(variant(x), theirs(x)):.1e}")


if __name__ == "__main__":
    main()
