"""Words of messages, and text on its way to a terminal."""

import json

import pytest

from normfree.words import as_json, counted, printable, tell


def test_one_and_many():
    assert counted(1, "image") == "1 image"
    assert counted(0, "image") == "0 images"
    assert counted(1437, "test image") == "1,437 test images"
    assert counted(2, "branch", "branches") == "2 branches"
    assert counted(1, "branch", "branches") == "1 branch"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("größe 猫 🙂", "größe 猫 🙂"),
        ("می‌خواهم", "می‌خواهم"),  # with a joiner
        ("a\u00a0b\u3000c", "a\u00a0b\u3000c"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[2J\x07\x9b31m\x7f", r"\x1b[2J\x07\x9b31m\x7f"),
        ("a\u202eb\u2066\u2028", r"a\u202eb\u2066\u2028"),
        ("\udcff", r"\udcff"),
        ("\U000e0001", r"\U000e0001"),
    ],
)
def test_what_a_terminal_acts_on_is_an_escape(capsys, text, shown):
    assert printable(text) == shown
    tell(text, "end")
    assert capsys.readouterr().out == f"{shown}\nend\n"
    assert json.loads(as_json({text: [text]})) == {text: [text]}
    assert printable(as_json(text)) == as_json(text)


def test_nothing_to_tell_is_no_line(capsys):
    tell()
    assert capsys.readouterr().out == ""
