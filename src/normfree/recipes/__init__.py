"""One YAML file per published number, and the schema they follow."""

from .recipe import (
    DEFAULT,
    Recipe,
    describe,
    describe_type,
    dump_recipe,
    field_help,
    field_paths,
    list_recipes,
    load_recipe,
    nearest_fields,
    recipe_header,
    recipe_text,
)
from .stored import as_it_was
from .task import TaskConfig

__all__ = [
    "DEFAULT",
    "Recipe",
    "TaskConfig",
    "as_it_was",
    "describe",
    "describe_type",
    "dump_recipe",
    "field_help",
    "field_paths",
    "list_recipes",
    "load_recipe",
    "nearest_fields",
    "recipe_header",
    "recipe_text",
]
