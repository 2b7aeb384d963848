"""The parts of a study of four runs of two steps on digits."""

SET = {
    "model.options.depths": [1, 1, 1],
    "model.options.widths": [16, 16, 32],
    "train.device": "cpu",
    "train.steps": 2,
    "train.batch_size": 8,
    "train.log_every": 1,
    "optim.ema_decay": None,
}
AXES = {"optim.lr": [0.1, 0.4], "net": {"clipped": {"optim.clipping": 0.02}, "bare": {"optim.clipping": None}}}
