"""The rooms import in one direction only, read from the source."""

import ast
from pathlib import Path

import pytest

import normfree

ROOT = Path(normfree.__file__).parent
FOUNDATION = {"errors", "files", "internals", "limits", "requirements", "version", "words"}
# What each room may import beside itself and the foundation; rooms to come are listed, rooms not listed fail.
ALLOWED = {
    "errors": set(),
    "files": set(),
    "requirements": set(),
    "version": set(),
    "words": set(),
    "internals": set(),
    "limits": set(),
    "functional": set(),
    "gain": set(),
    "measured": {"gain"},
    "kernels": {"functional"},
    "nn": {"functional", "gain", "kernels"},
    "models": {"functional", "gain", "nn"},
    "spp": {"functional", "gain", "nn", "models"},
    "weights": {"functional", "gain", "nn", "models"},
    "export": {"functional", "gain", "kernels", "nn", "models"},
    "convert": {"functional", "gain", "nn", "models", "spp"},
    "optim": {"functional", "gain", "kernels", "nn"},
    "data": set(),
    "pictures": set(),
    "private": {"functional", "gain", "nn", "optim"},
    "tasks": {
        *("functional", "gain", "nn", "models", "optim", "data", "export", "pictures", "recipes", "report", "spp"),
        *("training", "convert"),
    },
    "training": {"functional", "gain", "nn", "optim", "data", "private"},
    # dataclasses of settings from the rooms below
    "recipes": {"functional", "gain", "nn", "models", "optim", "data", "training", "private"},
    "bench": {"functional", "gain", "kernels", "nn", "models", "spp", "optim", "data", "training"},
    "runs": {
        *("functional", "gain", "nn", "models", "spp", "weights", "export", "optim", "data", "training", "recipes"),
        *("tasks", "pictures", "private", "report"),
    },
    "studies": {"models", "optim", "data", "training", "recipes", "tasks", "report", "runs"},
    "timm": {"functional", "models", "nn", "weights"},
    "report": {"spp", "pictures"},
    "cli": None,  # binds them all
    "__init__": None,  # the front door
    "__main__": None,
}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def absolute(node: ast.ImportFrom, path: Path) -> str:
    """The module that a (relative) import names."""
    if not node.level:
        return node.module or ""
    package = ["normfree", *path.relative_to(ROOT).parts[:-1]]
    base = package[: len(package) - node.level + 1]
    return ".".join(base + ([node.module] if node.module else []))


def imported_modules(path: Path) -> set[str]:
    """normfree's modules that a file imports, at its top or inside of functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = absolute(node, path)
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == "normfree"}


def imported_rooms(path: Path) -> set[str]:
    rooms = {name.split(".")[1] for name in imported_modules(path) if "." in name}
    return {room for room in rooms if (ROOT / room).is_dir() or (ROOT / f"{room}.py").is_file()}


FILES = sorted(ROOT.rglob("*.py"))
GRAPH = {room: set() for room in map(room_of, FILES)}
for _path in FILES:
    GRAPH[room_of(_path)] |= imported_rooms(_path) - {room_of(_path)}


def test_the_reader_sees_imports():
    assert GRAPH["models"] >= {"functional", "nn", "errors"}
    assert GRAPH["weights"] >= {"models", "nn"}
    assert GRAPH["optim"] >= {"nn", "functional"}
    assert GRAPH["errors"] == set()


@pytest.mark.parametrize("room", GRAPH)
def test_rooms_import_only_what_lies_below_them(room):
    assert room in ALLOWED, f"room {room} has no place in the house; give it one in docs/design.md and here"
    if ALLOWED[room] is not None:
        assert GRAPH[room] - FOUNDATION <= ALLOWED[room]


def test_nobody_imports_the_top():
    assert not [room for room, imports in GRAPH.items() if "cli" in imports and room not in ("__init__", "__main__")]


def cycle(graph, path):
    for following in sorted(graph.get(path[-1], ())):
        if following in path:
            return [*path[path.index(following) :], following]
        found = cycle(graph, [*path, following])
        if found:
            return found
    return None


def test_no_circles_between_rooms():
    rooms = {room: imports for room, imports in GRAPH.items() if room != "__init__"}
    for room in rooms:
        assert cycle(rooms, [room]) is None


def test_no_circles_between_modules():
    names = {".".join(("normfree", *path.relative_to(ROOT).with_suffix("").parts)): path for path in FILES}
    modules = {name.removesuffix(".__init__"): path for name, path in names.items()}
    graph = {}
    for name, path in modules.items():
        if path.name == "__init__.py":
            continue  # a package's front door imports its modules, and they import one another through files
        others = imported_modules(path) & modules.keys() - {name}
        graph[name] = {other for other in others if modules[other].name != "__init__.py"}
    for name in graph:
        assert cycle(graph, [name]) is None


def test_a_circle_would_be_found():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}, ["a"]) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}, ["a"]) is None


def test_no_attic():
    parts = {part.removesuffix(".py") for path in FILES for part in path.relative_to(ROOT).parts}
    assert not parts & {"utils", "util", "common", "helpers", "helper", "misc"}
