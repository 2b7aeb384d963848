"""The head of the page: what was trained, the state of training, and the scores."""

import math
import time
from dataclasses import dataclass, field

from .axes import compact, duration, number
from .markup import Markup, tag
from .run_files import Line, RunFiles, value
from .scores import EMA, best_line, deciding, label, score_names, shown

_ENDS = {
    "finished": ("finished", ""),
    "failed": ("failed", " --resume goes on from the last checkpoint."),
    "stopped": ("stopped early", " --resume goes on from there."),
}


@dataclass
class About:
    """Facts about a run from the caller; None for unknown ones.

    Attributes:
        score: name of the metric that is better when larger.
        clips: whether the run clips at all; clipping, clipping_eps: threshold and lower bound of the norms.
        clipping_kind: "unit", "layer" or "norm", see :func:`normfree.optim.agc_`.
        planned: optimizer steps in all; steps_per_epoch: of them.
        saved: step of the last checkpoint; save_every: steps between those that are not at evaluations.
        seconds: of training, without evaluations.
        unreadable: images that could not be read, a message each.
    """

    model: str | None = None
    data: str | None = None
    classes: int | None = None
    images: tuple[int, int] | None = None
    parameters: int | None = None
    score: str = "top1"
    clips: bool | None = None
    clipping: float | None = None
    clipping_eps: float | None = None
    clipping_kind: str = "unit"
    planned: int | None = None
    steps_per_epoch: float | None = None
    saved: int | None = None
    save_every: int | None = None
    seconds: float | None = None
    unreadable: list[str] = field(default_factory=list)


def head(run: RunFiles, about: About) -> Markup:
    """Name, state, key figures, scores."""
    kind, word, sentence = state(run, about)
    badge = tag("span", word, class_=f"state {kind}")
    facts = [item for name, content in _facts(run, about) for item in (tag("dt", name), tag("dd", content))]
    scores = tag("div", _scores(run, about), class_="wide")
    notes = [tag("p", note, class_="note") for note in run.notes]
    return tag(
        "header",
        tag("div", tag("h1", run.name), badge),
        tag("p", sentence, class_="note"),
        _tiles(run, about),
        tag("div", tag("dl", facts), scores, class_="two"),
        notes,
    )


def state(run: RunFiles, about: About) -> tuple[str, str, str]:
    """The run's state as (class of the style sheet, word, sentence): finished, failed, stopped early or unfinished."""
    if run.end is not None and str(run.end.get("state")) in _ENDS:
        kind = str(run.end["state"])
        word, more = _ENDS[kind]
        reason = str(run.end.get("reason", "")).strip()
        return kind, word, f"{reason[:1].upper()}{reason[1:]}.{more}" if reason else ""
    evaluated, saved = [line["step"] for line in run.evals], about.saved or 0
    if broken := _not_finite(run):
        return "failed", "failed", broken
    if about.planned is not None and evaluated and evaluated[-1] >= about.planned:
        return "finished", "finished", ""
    regular = saved in evaluated or (about.save_every is not None and saved % about.save_every == 0)
    if saved and saved >= run.step and not regular:  # an irregular save, as after a request to stop
        return "stopped", "stopped early", f"It was asked to stop after step {saved:,}; --resume goes on from there."
    since = "" if run.written is None else time.strftime(" Its last line is of %F %H:%M.", time.localtime(run.written))
    if not run.step and not saved:
        return "unfinished", "not begun", f"No step has been logged yet.{since}"
    return "unfinished", "not finished", f"It failed, was killed, or is still running.{since}"


def _not_finite(run: RunFiles) -> str | None:
    """A sentence about a number that is not finite and ended the run: the loss, or a score of the last evaluation."""
    lines = [(line, list(line)) for line in run.evals[-1:]] + [(line, ["loss"]) for line in run.train[-1:]]
    for line, names in lines:
        for name in names:
            if (found := value(line, name)) is not None and not math.isfinite(found):
                return f"After step {line['step']:,}, {name} is {found}."
    return None


def _tiles(run: RunFiles, about: About) -> Markup:
    name = deciding(run.evals, about.score)
    best, last = best_line(run.evals, name), run.evals[-1] if run.evals else None
    plain, of = name.removeprefix(EMA), "averaged weights, " if name.startswith(EMA) else ""
    tiles: list[tuple[str, str, str | None]] = [
        (shown(plain, None), f"{which} {label(plain)}", None)
        if line is None
        else (shown(plain, value(line, name)), f"{which} {label(plain)}", f"{of}{_when(line)}")
        for which, line in (("best", best), ("last", last))
    ]
    done = max(run.step, about.saved or 0)
    planned = "" if about.planned is None else f" / {about.planned:,}"
    epochs = value(run.train[-1] if run.train else {}, "epoch")
    tiles.append(
        (
            f"{done:,}{planned}",
            "optimizer steps",
            None if epochs is None else f"{number(epochs)} {'epoch' if epochs == 1 else 'epochs'}",
        )
    )
    if about.seconds is not None:
        tiles.append((duration(about.seconds), "training", "without evaluations"))
    if run.train and (speed := value(run.train[-1], "images_per_s")) is not None:
        left = value(run.train[-1], "seconds_left")
        if left is not None and left > 0 and state(run, about)[0] == "unfinished":
            remaining = f"{duration(left)} left then"
        else:
            remaining = None
        tiles.append((compact(float(f"{speed:.4g}")), "images/s", remaining))
    return tag(
        "div",
        [
            tag("div", tag("b", big), tag("span", what), tag("span", more) if more else None)
            for big, what, more in tiles
        ],
        class_="tiles",
    )


def _when(line: Line) -> str:
    epoch = value(line, "epoch")
    return f"step {line['step']:,}" if epoch is None else f"epoch {number(epoch)}"


def _facts(run: RunFiles, about: About) -> list[tuple[str, str]]:
    parameters = None if about.parameters is None else f"{about.parameters:,}"
    images = None
    if about.images is not None:
        images = f"{about.images[0]:,} to train, {about.images[1]:,} to test"
    known = [
        ("model", about.model),
        ("parameters", parameters),
        ("data", about.data),
        ("images", images),
        ("classes", None if about.classes is None else f"{about.classes:,}"),
        *((name, run.environment.get(name)) for name in ("device", "gpu", "processes", "started")),
        ("steps left out", _left_out(run)),
    ]
    return [(name, content) for name, content in known if content is not None]


def _left_out(run: RunFiles) -> str | None:
    if not run.skipped:
        return None
    last = run.skipped[-1]
    return f"{len(run.skipped):,}; the last one is {last['step']:,}: {last.get('reason', 'no reason given')}"


def _scores(run: RunFiles, about: About) -> Markup:
    """The scores of the best and of the last evaluation: a row for raw weights and one for averaged weights."""
    names = score_names(run.evals, about.score)
    if not run.evals or not names:
        return tag("p", "no evaluation yet", class_="missing")
    name = deciding(run.evals, about.score)
    best, last = best_line(run.evals, name), run.evals[-1]
    lines = [("best and last", last)] if best is last else [("best", best), ("last", last)]
    rows = []
    for which, line in lines:
        for weights, prefix in (("averaged", EMA), ("raw", "")):
            if line is None or value(line, prefix + names[0]) is None:
                continue
            cells = [tag("td", shown(one, value(line, prefix + one)), class_="n") for one in names]
            rows.append(tag("tr", tag("th", f"{which}, {weights}"), tag("td", f"{line['step']:,}", class_="n"), cells))
    heading = [
        tag("th", title, class_="n") for title in ("step", *(label(one).removesuffix(" accuracy") for one in names))
    ]
    return tag("table", tag("thead", tag("tr", tag("th", "weights"), heading)), tag("tbody", rows))
