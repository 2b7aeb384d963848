"""``normfree recipes``."""

from collections.abc import Sequence

from ..recipes import list_recipes, recipe_header, recipe_text
from ..words import tell
from .parser import Parser


def run(argv: Sequence[str]) -> int:
    """Print the list of recipes, or one of them whole."""
    parser = Parser("recipes", description="List the recipes that come with normfree, or print one.")
    parser.add_argument("name", nargs="?", help="recipe to print")
    options = parser.parse_args(list(argv))
    if options.name:
        tell(*recipe_text(options.name).rstrip().splitlines())
        return 0
    width = max(map(len, list_recipes()))
    for name in list_recipes():
        print(f"{name:{width}}  {recipe_header(name)[0]}")
    print("\nnormfree recipes NAME prints one; normfree train --recipe NAME|FILE.yaml trains by it.")
    return 0
