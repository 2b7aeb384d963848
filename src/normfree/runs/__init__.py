"""Runs of training and the networks that they leave, from Python: what the commands do.

from normfree import runs

run = runs.train("digits", {"train.epochs": 5}, out="runs/five")  # normfree train
runs.train(overrides={"train.epochs": 10}, resume="runs/five")  # ... --resume
network = runs.load("runs/five")  # a run, a file of weights, an exported file, pretrained:NAME
runs.evaluate(network).measured.scores  # normfree eval
list(runs.predictions("runs/five", ["photos"]))  # normfree predict
runs.noise_scale("runs/five").noise.scale  # normfree noise-scale
"""

from .evaluate import Evaluation, evaluate
from .find_lr import FoundRate, find_lr
from .initialize import initialize
from .load import load
from .lock import FolderInUse, RunLock
from .noise_scale import RunNoise, noise_scale
from .predict import predictions
from .prepare import prepare
from .resume import resumed_recipe, run_to_go_on_with
from .start import Finished, train

__all__ = [
    "Evaluation",
    "Finished",
    "FolderInUse",
    "FoundRate",
    "RunLock",
    "RunNoise",
    "evaluate",
    "find_lr",
    "initialize",
    "load",
    "noise_scale",
    "predictions",
    "prepare",
    "resumed_recipe",
    "run_to_go_on_with",
    "train",
]
