"""User errors of the training side; all are :class:`data_pipeline.errors.UserError`."""

import errno

from data_pipeline.errors import UserError


class RecipeError(UserError):
    """A recipe that cannot be read, or whose values contradict each other."""


class LayoutError(RecipeError):
    """A layout that does not fit the model or the number of processes."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or of another model or recipe."""


class RunDirectoryError(UserError):
    """A run directory that cannot be written, or that belongs to another recipe."""


class DiskFullError(CheckpointError, RunDirectoryError):
    """No room for what a run writes. The run itself is in order: it goes on as soon as somebody makes room."""


def is_disk_full(error: BaseException) -> bool:
    """Whether an error of the system says that there is no room: on the disk, or in what the user may have of it."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
