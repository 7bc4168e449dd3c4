"""User errors of the training side; all are :class:`data_pipeline.errors.UserError`."""

from data_pipeline.errors import UserError


class RecipeError(UserError):
    """A recipe that cannot be read, or whose values contradict each other."""


class LayoutError(RecipeError):
    """A layout that does not fit the model or the number of processes."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or of another model or recipe."""


class RunDirectoryError(UserError):
    """A run directory that cannot be written, or that belongs to another recipe."""
