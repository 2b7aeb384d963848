"""The two ways a call can fail that are not a bug of normfree."""


class UsageError(ValueError):
    """Input that cannot be used as given; the message names it, its value, and what would be right."""


class RunFailed(RuntimeError):
    """A run that started and could not go on; the message says why, at which step, and what is kept."""


class NotFinite(RunFailed):
    """A loss or a gradient that is not finite; parameters, momentum and averages are as before the step."""
