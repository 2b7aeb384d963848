"""One YAML file per published number, and the schema they follow."""

from .recipe import (
    DEFAULT,
    Recipe,
    describe_type,
    dump_recipe,
    field_help,
    field_paths,
    list_recipes,
    load_recipe,
    recipe_header,
    recipe_text,
)

__all__ = [
    "DEFAULT",
    "Recipe",
    "describe_type",
    "dump_recipe",
    "field_help",
    "field_paths",
    "list_recipes",
    "load_recipe",
    "recipe_header",
    "recipe_text",
]
