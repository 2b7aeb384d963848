"""One YAML file per published number, and the schema they follow."""

from .build import build_network, build_task, describe, is_dense, open_images, open_test_images, set_sizes
from .recipe import (
    DEFAULT,
    Recipe,
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

__all__ = [
    "DEFAULT",
    "Recipe",
    "as_it_was",
    "build_network",
    "build_task",
    "describe",
    "describe_type",
    "dump_recipe",
    "field_help",
    "field_paths",
    "is_dense",
    "list_recipes",
    "load_recipe",
    "nearest_fields",
    "open_images",
    "open_test_images",
    "recipe_header",
    "recipe_text",
    "set_sizes",
]
