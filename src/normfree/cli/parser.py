"""The parser of every command."""

import argparse
from typing import Any, NoReturn

from ..errors import UsageError


class Parser(argparse.ArgumentParser):
    """argparse that raises instead of exiting, so that every error takes the same way out."""

    def __init__(self, verb: str, **kwargs: Any):
        super().__init__(prog=f"normfree {verb}", allow_abbrev=False, **kwargs)
        self.add_argument("--traceback", action="store_true", help="show where an error comes from")

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")
