"""Settings of the cache of remote shards."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import DataError


@dataclass(frozen=True)
class CacheOptions:
    """How remote shards are fetched, and where they are kept on this machine.

    Attributes:
        directory: the cache folder, on a local disk; all processes of a machine may share it.
        limit_bytes: size of all shards in the folder, those being fetched included.
        threads: requests at one time for one shard.
        retries: tries of a request after the first one, and downloads of damaged parts after the first one.
        timeout_s: seconds without a byte (http, https) or for a whole part (elsewhere) until a request has failed.
        backoff_s: seconds before the first retry; doubled for each further one, up to a minute, with jitter.
        part_bytes: size of the ranges that are requested.

    Raises:
        DataError: a value that cannot work.
    """

    directory: Path
    limit_bytes: int
    threads: int = 8
    retries: int = 5
    timeout_s: float = 60.0
    backoff_s: float = 0.5
    part_bytes: int = 8 << 20

    def __post_init__(self) -> None:
        for name, smallest in (("limit_bytes", 1), ("threads", 1), ("retries", 0), ("part_bytes", 1)):
            if getattr(self, name) < smallest:
                raise DataError(f"cache: {name} is {getattr(self, name)}; it must be at least {smallest}")
        if self.timeout_s <= 0 or self.backoff_s < 0:
            raise DataError(
                f"cache: timeout_s is {self.timeout_s} and backoff_s {self.backoff_s}; "
                "the first must be positive, the second not negative"
            )

    @classmethod
    def of(cls, directory: str | None, limit_gb: float, retries: int, timeout_seconds: float) -> CacheOptions:
        """Options in the units of a recipe.

        Args:
            directory: the cache folder; None for the user's own.
            limit_gb: size of all shards in the folder in 10^9 bytes.
            retries: tries of a request after the first one.
            timeout_seconds: until a request has failed.
        """
        folder = Path(directory) if directory else _user_cache() / "ptm-dist" / "shards"
        return cls(folder.expanduser(), int(limit_gb * 1e9), retries=retries, timeout_s=timeout_seconds)


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
