"""The recipe of the run, the environment it ran in, and the images it could not read."""

import re
from collections.abc import Mapping, Sequence

from ..words import counted
from .markup import Markup, Missing, join, missing, section, tag
from .run_files import RunFiles

_KEY = re.compile(r"( *)([\w.-]+):(?= |$)")
MAX_UNREADABLE = 200  # names on the page


def recipe(run: RunFiles, changed: Mapping[str, str] | Missing, unreadable: Sequence[str]) -> Markup:
    """The recipe's text, the environment, the unreadable images.

    Args:
        changed: dotted path of each field that differs from its default, and the default as text.
    """
    left = [tag("h3", "Recipe")]
    if isinstance(changed, Missing):
        left.append(missing(changed))
    elif changed:
        differ = f"{counted(len(changed), 'field')} that {'differs' if len(changed) == 1 else 'differ'}"
        left.append(tag("p", f"Marked: {differ} from the default, which is behind.", class_="note"))
    left.append(_marked(run.recipe, {} if isinstance(changed, Missing) else changed))
    return section(
        "recipe",
        "Recipe and environment",
        tag("div", tag("div", left), tag("div", _environment(run), _unreadable(unreadable)), class_="two"),
    )


def _marked(text: str, changed: Mapping[str, str]) -> Markup:
    """YAML in block style; lines of a changed field are marked, with its default behind the first."""
    lines: list[Markup] = []
    path: list[tuple[int, str]] = []  # indentation and name of the fields that a line is in
    for line in text.splitlines():
        match = _KEY.match(line)
        if match:
            indent = len(match[1])
            path = [part for part in path if part[0] < indent] + [(indent, match[2])]
        names = [".".join(name for _, name in path[:depth]) for depth in range(1, len(path) + 1)]
        field = next((name for name in names if name in changed), None)
        content = line.lstrip()
        shown = tag("mark", content) if field is not None and content else content
        if match is not None and field is not None and field == names[-1]:
            default = tag("i", f"  # default {changed[field]}")
        else:
            default = None
        lines.append(tag("span", line[: len(line) - len(content)], shown, default, "\n"))
    return tag("pre", lines, class_="recipe")


def _environment(run: RunFiles) -> list[Markup]:
    heading = tag("h3", "Environment")
    if not run.environment:
        return [heading, missing("there is no environment.json with entries; runs of older versions have none")]
    return [heading, tag("dl", [join(tag("dt", name), tag("dd", text)) for name, text in run.environment.items()])]


def _unreadable(messages: Sequence[str]) -> list[Markup]:
    heading = tag("h3", "Unreadable images")
    if not messages:
        return [heading, tag("p", "none")]
    more = len(messages) - MAX_UNREADABLE
    items = [tag("li", message) for message in messages[:MAX_UNREADABLE]]
    return [heading, tag("ul", items, [tag("li", f"and {more:,} more")] if more > 0 else [], class_="plain")]
