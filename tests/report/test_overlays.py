"""Images beside the truth and the network's answer on the page: in order, with the meaning of their colours."""

import base64
import io

import numpy as np
from PIL import Image

from normfree.report import Colors, Overlay, Overlays, Range, Table

HOSTILE = '<img src="http://x" onerror=alert(1)>'
RED, BLUE = np.array([[250, 0, 10], [0, 16, 255]], np.uint8)


def plain(text: str) -> str:
    return " ".join(text.replace("\N{NARROW NO-BREAK SPACE}", " ").split())


def overlay(caption: str, side: int = 20) -> Overlay:
    panels = [(name, Image.new("RGB", (side, side), color)) for name, color in (("image", "red"), ("truth", "blue"))]
    return Overlay(panels, caption, "detail\nmore", "whole name")


def test_panels_in_order(page):
    shown = page(examples=Overlays([overlay("first"), overlay("second", 300)], Colors(["cat", "dog"], [RED, BLUE])))
    text = plain(shown.sections["examples"])
    assert text == "Examples cat dog image truth first detail more image truth second detail more"
    images = shown.all("img")
    assert [i["alt"] for i in images] == ["image, first", "truth, first", "image, second", "truth, second"]
    kinds = [i["src"].partition(";")[0] for i in images]
    assert kinds == ["data:image/png"] * 2 + ["data:image/jpeg"] * 2  # small ones without loss
    for image, color in zip(images, ((255, 0, 0), (0, 0, 255)) * 2, strict=True):
        with Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))) as read:
            assert max(read.size) <= 256
            assert np.abs(np.array(read.convert("RGB"))[0, 0].astype(int) - color).max() < 6
    assert [s for s in (i.get("style", "") for i in shown.all("i")) if "#" in s] == [
        "background:#fa000a",
        "background:#0010ff",
    ]
    assert any(a.get("title") == "whole name" for a in shown.all("div"))


def test_a_range_of_colours(page):
    colors = np.stack([np.linspace(0, 255, 256)] * 3, 1).astype(np.uint8)
    shown = page(examples=Overlays([overlay("a")], Range(1.5, 9.0, "m", colors)), introduction="Depth.")
    assert plain(shown.sections["examples"]).startswith("Examples Depth. 2 m 4 m 6 m 8 m image")
    (bar,) = [a for a in shown.all("i") if a.get("class") == "bar"]
    assert bar["style"].startswith("background:linear-gradient(90deg,#000000,")
    assert bar["style"].endswith("#ffffff)")
    flat = page(examples=Overlays([overlay("a")], Range(2.0, 2.0, "m", colors)))
    assert "2 m" in plain(flat.sections["examples"])


def test_tables_with_colours(page):
    table = Table("By class", ["class", "IoU"], [["cat", "50 %"], [HOSTILE, "1 %"]], np.stack([RED, BLUE]), "a note")
    shown = page(examples=Overlays([], tables=[table, Table("Other", ["x"], [["y"]])]))
    text = plain(shown.sections["examples"])
    assert text == f"Examples By class class IoU cat 50 % {HOSTILE} 1 % a note Other x y"
    assert HOSTILE not in shown.source
    assert not shown.all("img")


def test_hostile_words(page):
    shown = page(examples=Overlays([overlay(HOSTILE)], Colors([HOSTILE], [RED])), introduction=HOSTILE)
    assert HOSTILE not in shown.source
    assert not [i for i in shown.all("img") if "onerror" in i]


def test_many_classes(page):
    names = [f"class{i}" for i in range(150)]
    shown = page(examples=Overlays([overlay("a")], Colors(names, np.zeros((150, 3), np.uint8))))
    text = plain(shown.sections["examples"])
    assert "class59 and 90 more" in text
    assert "class60" not in text
