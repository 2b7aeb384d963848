"""All tasks."""

from ..errors import UsageError
from ..export.description import OUTPUTS, VECTORS
from ..recipes import Recipe
from ..recipes.task import NAMES
from .classification import Classification
from .depth import Depth
from .detection import Detection
from .multilabel import MultiLabel
from .regression import Regression
from .segmentation import Segmentation
from .task import Task
from .volumes import Volumes

TASKS: dict[str, type[Task]] = {}  # by kind


def register(task: type[Task]) -> type[Task]:
    """Add a task; recipes name it by ``task.name`` from then on.

    Raises:
        UsageError: there is another one of this kind.
    """
    if TASKS.setdefault(task.kind, task) is not task:
        raise UsageError(f"there is another task {task.kind!r}, {TASKS[task.kind].__name__}")
    if task.name not in NAMES:
        NAMES.append(task.name)
    if task.output is not None:
        OUTPUTS.setdefault(task.kind, task.output)
        if task.targets != "pairs":
            VECTORS.setdefault(task.kind, task.output)
    return task


for _task in (Classification, MultiLabel, Regression, Segmentation, Volumes, Depth, Detection):
    register(_task)


def task_of(recipe: Recipe) -> type[Task]:
    """The task of a recipe."""
    return TASKS["multi-label" if recipe.task.labels == "multi" else recipe.task.name]
