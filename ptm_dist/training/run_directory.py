"""The directory that holds everything of one run, and that belongs to one recipe and one live run."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ptm_dist.checkpoint.files import write_atomically
from ptm_dist.errors import DiskFullError, RecipeError, RunDirectoryError, is_disk_full
from ptm_dist.recipe.fingerprint import differences
from ptm_dist.recipe.loading import dump_recipe, load_recipe
from ptm_dist.recipe.schema import Recipe

RECIPE_FILE = "recipe.yaml"
METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
LOGS = "logs"
PROFILE = "profile"
LOCK_FILE = ".lock"
_POLL_SECONDS = 0.2


class RunDirectory:
    """Paths of a run, its events, and the lock that keeps a second run out.

    Args:
        path: the directory, which need not exist yet; see :meth:`prepare`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / RECIPE_FILE
        self.metrics = path / METRICS_FILE
        self.events = path / EVENTS_FILE
        self.checkpoints = path / CHECKPOINTS
        self.tensorboard = path / TENSORBOARD
        self.logs = path / LOGS
        self.profile = path / PROFILE

    def prepare(self, recipe: Recipe) -> None:
        """Create what is missing; give the directory its recipe if it has none.

        Safe to call from several processes, and again. A directory of the same learning under another layout
        is the same run: its recipe file then says how it was computed last.

        Raises: RunDirectoryError if it belongs to a run that learns something else, or cannot be written.
        """
        self._refuse_other(recipe)
        with self._writing():
            for directory in (self.path, self.checkpoints, self.tensorboard, self.logs):
                directory.mkdir(parents=True, exist_ok=True)
            write_atomically(self.recipe, dump_recipe(recipe))

    @contextmanager
    def locked(self, patience: float = 0.0) -> Iterator[None]:
        """Keep other runs out while the body runs; the system lets go when the process dies.

        Args:
            patience: seconds to wait for another process that holds it.

        Raises: RunDirectoryError if another live process holds it after that time.
        """
        with self._writing():
            descriptor = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._take(descriptor, time.monotonic() + patience)
            os.truncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            yield
        finally:
            os.close(descriptor)

    def event(self, kind: str, **values: Any) -> None:
        """Append what happened, with the time (UTC, ISO 8601), to ``events.jsonl``; on disk on return."""
        row = {"time": timestamp(), "event": kind, **values}
        with self._writing(), self.events.open("ab+") as stream:
            stream.write(f"{_line_break(stream.tell(), self.events)}{json.dumps(row)}\n".encode())
            stream.flush()
            os.fsync(stream.fileno())

    def _refuse_other(self, recipe: Recipe) -> None:
        if not self.recipe.exists():
            return
        try:
            found = differences(load_recipe(self.recipe), recipe)
        except RecipeError as error:
            found = [str(error)]
        if found:
            raise RunDirectoryError(
                f"{self.path} holds a run of another recipe ({'; '.join(found)}); choose another name or run_dir, "
                "or remove it"
            )

    def _take(self, descriptor: int, deadline: float) -> None:
        while not self._is_taken(descriptor):
            if time.monotonic() > deadline:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
                raise RunDirectoryError(
                    f"{self.path} is in use by {holder or 'another process'}; wait for it, stop it, or choose another "
                    "name or run_dir"
                )
            time.sleep(_POLL_SECONDS)

    def _is_taken(self, descriptor: int) -> bool:
        try:
            # A record lock: unlike flock's it is not shared with forked data loaders that outlive a kill.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise RunDirectoryError(f"cannot lock {self.path}: {error.strerror}") from error
            return False
        return True

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            is_full = is_disk_full(error)
            reason = "its disk is full" if is_full else str(error)
            raise (DiskFullError if is_full else RunDirectoryError)(
                f"cannot write to the run directory {self.path}: {reason}; choose another run_dir or mend this one"
            ) from error


def timestamp() -> str:
    """Now, as it stands in the files of a run: UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _line_break(size: int, path: Path) -> str:
    """What ends a last line that a killed process left half written."""
    if size == 0:
        return ""
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return "" if stream.read() == b"\n" else "\n"
