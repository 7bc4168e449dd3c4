"""The error of a shard that cannot be used, apart from those that concern the whole data set."""

from __future__ import annotations

from data_pipeline.errors import DataError


class BrokenShard(DataError):  # noqa: N818 -- what is raised is the state of a shard, not a mistake
    """A shard is damaged, missing or cannot be fetched; a run may go on without it.

    Attributes:
        shard: its file name, as in the manifest.
    """

    def __init__(self, shard: str, message: str) -> None:
        super().__init__(message)
        self.shard = shard

    def __reduce__(self) -> tuple[type[BrokenShard], tuple[str, str]]:
        # Exceptions are rebuilt from what they print, which here is not what they were made of.
        return type(self), (self.shard, str(self))
