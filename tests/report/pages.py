"""A report's page, read as a browser would; lines as a run writes them."""

import json
from html.parser import HTMLParser

VOID = {"br", "col", "img", "meta", "source"}


class Page(HTMLParser):
    """Elements as (name, attributes), and the text of each section."""

    def __init__(self, content: bytes):
        super().__init__(convert_charrefs=True)
        self.source, self.elements, self.open = content.decode(), [], []
        self.sections: dict[str, str] = {}
        self.feed(self.source)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append((name, dict(attributes)))

    def handle_endtag(self, name):
        assert self.open.pop()[0] == name

    def handle_data(self, text):
        inside = [a.get("id") for name, a in self.open if name in ("section", "header")]
        if inside:
            self.sections[inside[0] or "head"] = self.sections.get(inside[0] or "head", "") + text + "\n"

    def all(self, name: str) -> list[dict[str, str]]:
        return [attributes for found, attributes in self.elements if found == name]

    def data(self, name: str) -> list[dict]:
        """What elements carry for the script: "chart" or "map"."""
        return [json.loads(a[f"data-{name}"]) for _, a in self.elements if f"data-{name}" in a]


def train_line(step: int, **more) -> dict:
    return dict(kind="train", step=step, epoch=step / 10, loss=3.0 / step, accuracy=0.1, lr=0.5, clipped=0.25, **more)


def eval_line(step: int, top1: float, **more) -> dict:
    return dict(kind="eval", step=step, epoch=step / 10, top1=top1, top5=0.9, loss=1.5, images=360, **more)
