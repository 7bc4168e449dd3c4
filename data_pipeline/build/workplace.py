"""The folder in which a build works: what is done stays done, one build at a time, and all appears at once."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from data_pipeline.atomic import publish_folder, write_errors
from data_pipeline.build.plan import PLAN_NAME, Plan, Request
from data_pipeline.errors import DataError

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


class Workplace:
    """``OUT.building`` beside ``OUT``, kept when a build is killed, and renamed into ``OUT`` in the end.

    Attributes:
        out: where the data shall appear.
        root: the working folder.
        data: inside of it, what becomes ``out``.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.root = out.with_name(f"{out.name}.building")
        self.data = self.root / "data"

    def records(self, stage: str) -> Path:
        """The folder of a stage, with one file for each finished piece of work, by number."""
        return self.root / stage

    @property
    def is_free(self) -> bool:
        """Whether nothing lies at ``out``; an empty folder is nothing."""
        return not self.out.exists() or (self.out.is_dir() and not any(self.out.iterdir()))

    def check_replaceable(self) -> None:
        """Refuse to replace what no build has written.

        Raises: DataError if ``out`` is neither free nor token shards.
        """
        if not self.is_free and not any((self.out / name).exists() for name in (PLAN_NAME, "train/manifest.json")):
            raise DataError(f"{self.out} holds something other than token shards; remove it or choose another folder")

    @property
    def claims(self) -> Path:
        """Where ranks mark what they work on."""
        return self.root / "claims"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other builds out; a crash lets go.

        Raises: DataError if another build is at work, or the place cannot be written.
        """
        with write_errors(self.out):
            descriptor = self._lock()
            self._sweep()
        try:
            yield
        finally:
            if self.root.exists() and not self.data.exists():
                self._remove()
            os.close(descriptor)

    def _lock(self) -> int:
        while True:
            self.root.mkdir(parents=True, exist_ok=True)
            path = self.root / "lock"
            try:
                descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
            except FileNotFoundError:
                continue  # another build has just ended and taken the folder away
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise DataError(
                    f"another build of {self.out} is at work; wait for it or choose another output folder"
                ) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:  # some network file systems have none: then the user keeps watch
                    os.close(descriptor)
                    raise
            # The build that held the lock may have moved the folder away in the meantime.
            if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
            os.close(descriptor)

    def _sweep(self) -> None:
        for path in self.root.parent.iterdir():
            if path.name.startswith(f"{self.root.name}-"):  # killed while the folder was removed
                shutil.rmtree(path, ignore_errors=True)

    def prepare(self, request: Request, *, overwrite: bool) -> Plan:
        """The plan that is being worked on, or a new one.

        Raises: DataError if an interrupted build of something else lies here and may not be dropped, or the text
            cannot be read or split.
        """
        if (self.data / PLAN_NAME).exists():
            problem, plan = self._interrupted(request)
            if plan is not None:
                return plan
            if not overwrite:
                raise DataError(f"{self.root} holds an interrupted build of {problem}; --overwrite starts anew")
        self._clear()
        plan = Plan.of(request)
        plan.save(self.data)
        return plan

    def _interrupted(self, request: Request) -> tuple[str, Plan | None]:
        try:
            plan = Plan.load(self.data)
        except DataError as error:
            return str(error), None
        problem = request.difference(plan.request)
        changed = None if problem else request.changed_file(plan.request)
        if changed is not None:
            problem = f"an earlier or another {changed}"
        return problem or "", None if problem else replace(plan, request=request)

    def _clear(self) -> None:
        for path in self.root.iterdir():
            if path.name != "lock":
                shutil.rmtree(path)

    def publish(self, *, overwrite: bool) -> None:
        """Let the data appear under its name, and remove the rest."""
        with write_errors(self.out):
            publish_folder(self.data, self.out, overwrite=overwrite or self.is_free)
        self._remove()

    def _remove(self) -> None:
        # Under another name first, so that nobody finds half of it.
        leaving = self.root.with_name(f"{self.root.name}-{uuid.uuid4().hex[:8]}")
        self.root.rename(leaving)
        shutil.rmtree(leaving, ignore_errors=True)
