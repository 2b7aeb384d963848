"""What is no markup is text."""

import html

import pytest

from normfree.report.markup import Markup, Missing, join, missing, tag, text

HOSTILE = ["<script>alert(1)</script>", '" onload="alert(1)', "a & b", "'", "</style><img src=x>", "&lt;"]


@pytest.mark.parametrize("word", HOSTILE)
def test_text_is_escaped_wherever_it_stands(word):
    made = tag("td", word, [word], title=word)
    assert made == f'<td title="{html.escape(word)}">{html.escape(word)}{html.escape(word)}</td>'
    assert html.unescape(text(word)) == word


def test_markup_is_kept():
    inner = tag("b", "x")
    assert tag("p", inner, [inner, "&"]) == "<p><b>x</b><b>x</b>&amp;</p>"
    assert join(inner, None, "<") == "<b>x</b>&lt;"


def test_a_string_made_of_markup_is_text_again():
    """Adding strings to markup loses what it is, so nothing unescaped can slip in."""
    assert text(tag("b", "x") + "<i>") == "&lt;b&gt;x&lt;/b&gt;&lt;i&gt;"


def test_attributes():
    assert tag("a", class_="c", data_map="[1]", title=None) == '<a class="c" data-map="[1]"></a>'
    assert tag("meta", http_equiv="x", name="y") == '<meta http-equiv="x" name="y">'


@pytest.mark.parametrize("code", [0x00, 0x1B, 0x7F, 0x9B, 0x202E, 0x2066, 0xD800, 0xDCFF, 0xFFFF])
def test_what_cannot_be_shown_or_turns_the_text_around_is_replaced(code):
    shown = text(f"a{chr(code)}b")
    assert shown == "a\N{REPLACEMENT CHARACTER}b"
    assert isinstance(shown, Markup)
    shown.encode()


@pytest.mark.parametrize("word", ["Löwe", "猫", "\N{CAT FACE}", "قط", "می\N{ZERO WIDTH NON-JOINER}روم"])
def test_names_in_any_script(word):
    assert text(word) == word


def test_reasons_are_one_line():
    assert Missing("a\n  b") == "a b"
    assert missing("no <file>") == '<p class="missing">no &lt;file&gt;</p>'
