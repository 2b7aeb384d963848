"""The page: all sections in one HTML file that needs no other file."""

from collections.abc import Sequence
from dataclasses import dataclass

from .clipping import clipping
from .curves import curves
from .examples import Confusion, Example, examples
from .head import About, head
from .markup import Markup, Missing, join, tag
from .overlays import Overlays, overlays
from .recipe import recipe
from .run_files import RunFiles
from .script import SCRIPT, policy
from .signal import Recorded, signal
from .style import CSS

SECTIONS = dict(curves="Curves", clipping="Clipping", signal="Signal", examples="Examples", recipe="Recipe")


@dataclass
class Report:
    """The content of the page. For a part that is a :class:`Missing`, the page shows the reason.

    Attributes:
        changed: fields of the recipe that differ from the default, with the default as text.
        recorded: the network's signal propagation now.
        examples: pictures of mistakes, or of predictions beside the truth; introduction and note: the lines before
            and after them; confusion: of classes.
        made: version and date.
    """

    run: RunFiles
    about: About
    changed: dict[str, str] | Missing
    recorded: Recorded | Missing
    examples: Sequence[Example] | Overlays | Missing
    introduction: str = ""
    note: str = ""
    confusion: Confusion | None = None
    made: str = ""


def write_page(report: Report) -> bytes:
    """The HTML file. It loads no other files, which its content security policy forbids."""
    run, about = report.run, report.about
    return document(
        f"{run.name} \N{MIDDLE DOT} training report",
        head(run, about),
        tag("nav", [tag("a", name, href=f"#{identity}") for identity, name in SECTIONS.items()]),
        curves(run, about),
        clipping(run, about),
        signal(report.recorded, run.film),
        _examples(report),
        recipe(run, report.changed, about.unreadable),
        tag("p", report.made, class_="note", style="margin-top:44px") if report.made else None,
    )


def document(title: str, *children: Markup | None) -> bytes:
    """An HTML file with the style sheet and the script of all pages."""
    style, script = tag("style", Markup(CSS)), tag("script", Markup(SCRIPT))
    meta = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy()),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
    ]
    body = tag("body", tag("main", *children), script)
    html = tag("html", tag("head", meta, tag("title", title), style), body, lang="en")
    return join(Markup("<!doctype html>\n"), html, "\n").encode()


def _examples(report: Report) -> Markup:
    if isinstance(report.examples, Overlays):
        return overlays(report.examples, report.introduction, report.note)
    return examples(report.examples, report.introduction, report.confusion, report.note)
