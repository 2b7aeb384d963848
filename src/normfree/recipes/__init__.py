"""One YAML file per published number, and the schema they follow."""

from .earlier import with_earlier_defaults
from .override import check_import
from .recipe import (
    DEFAULT,
    Recipe,
    describe,
    describe_field,
    describe_type,
    dump_recipe,
    field_help,
    field_paths,
    list_recipes,
    load_recipe,
    nearest_fields,
    path_names,
    recipe_header,
    recipe_text,
)
from .task import TaskConfig

__all__ = [
    "DEFAULT",
    "Recipe",
    "TaskConfig",
    "check_import",
    "describe",
    "describe_field",
    "describe_type",
    "dump_recipe",
    "field_help",
    "field_paths",
    "list_recipes",
    "load_recipe",
    "nearest_fields",
    "path_names",
    "recipe_header",
    "recipe_text",
    "with_earlier_defaults",
]
