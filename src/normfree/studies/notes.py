"""What the runs of a study print, without what an earlier one has said already."""

import re
from typing import Any, TextIO

OWN = re.compile(r"; into .*$")  # ends the first line of a run, which the study's own line says shorter


class Once:
    """A stream of text that passes on each line the first time; progress bars go through as they are."""

    def __init__(self, stream: TextIO):
        self.stream, self.seen, self.rest = stream, set[str](), ""

    def write(self, text: str) -> int:
        """Pass on what is new of it."""
        if "\r" in text or "\x1b" in text:
            self.stream.write(text)
            return len(text)
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            if not line or (line not in self.seen and not OWN.search(line)):
                self.stream.write(f"{line}\n")
            self.seen.add(line)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
