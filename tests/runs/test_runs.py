"""Runs from Python: what the commands do."""

from tiny_runs import FLAGS

FIELDS = {flag.removeprefix("--"): value for flag, value in zip(FLAGS[::2], FLAGS[1::2], strict=True)}


def test_flags_are_pairs():
    assert FIELDS
    assert all("." in name for name in FIELDS)
