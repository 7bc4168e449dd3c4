"""A run directory as seen from a node: can it be written, read, renamed, and is there room?

`python -m launcher.doctor.storage FOLDER NODE` does the work of :func:`examine_storage` in a process of its own: a
network file system that is gone does not fail, it waits, and whoever asked it waits with it.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.doctor.findings import Finding, Level
from launcher.doctor.probe import Answer, Probe

_BYTES = 256 << 10
_SLOW_SECONDS = 2.0
_FEW_FILES = 1000
_WHAT = "run directory"


@dataclass(frozen=True)
class Storage:
    """A folder after some work in it.

    Attributes:
        seconds: to write a small file to disk, read it back and rename it.
        free: bytes that this user can still write.
        files_free: files that can still be made; None where the file system does not count them.
    """

    seconds: float
    free: int
    files_free: int | None


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists: where it would be made."""
    absolute = path.absolute()
    return next(folder for folder in (absolute, *absolute.parents) if folder.is_dir())


def start_storage(folder: Path, node: str, patience: float) -> Probe:
    """Begin to examine a folder; see :func:`storage_findings`."""
    return Probe([sys.executable, "-m", "launcher.doctor.storage", str(folder), node], patience)


def storage_findings(folder: Path, answer: Answer, needed: int) -> tuple[int | None, Finding]:
    """What a started examination found.

    Args:
        folder: as given to :func:`start_storage`.
        answer: of that program.
        needed: bytes that the run will write.

    Returns: bytes free, None if the folder could not be used; and the finding.
    """
    if answer.code is None:
        return None, Finding(
            Level.ERROR, _WHAT, f"{folder} does not answer", "see whether its file system is mounted and its server up"
        )
    if answer.code != 0:
        return None, Finding(Level.ERROR, _WHAT, _last_line(answer), "mend it, or choose another run_dir")
    return judge(folder, Storage(**json.loads(answer.out)), needed)


def judge(folder: Path, storage: Storage, needed: int) -> tuple[int, Finding]:
    """Whether a folder that can be used has room, and is not slow; see :func:`storage_findings`."""
    room = f"{_gib(storage.free)} free in {folder}"
    if storage.free < needed:
        advice = "free some, keep fewer checkpoints, or choose another run_dir"
        return storage.free, Finding(Level.ERROR, _WHAT, f"{room}, two checkpoints need {_gib(needed)}", advice)
    if storage.files_free is not None and storage.files_free < _FEW_FILES:
        detail = f"room for {storage.files_free} more files in {folder}"
        return storage.free, Finding(Level.ERROR, _WHAT, detail, "remove some, or choose another run_dir")
    if storage.seconds > _SLOW_SECONDS:
        detail = f"{room}, but {_BYTES >> 10} KiB took {storage.seconds:.1f} s to write, read and rename"
        return storage.free, Finding(Level.WARNING, _WHAT, detail, "checkpoints will be slow: ask who runs its server")
    return storage.free, Finding(Level.OK, _WHAT, f"{room}, written and read in {storage.seconds * 1000:.0f} ms")


def examine_storage(folder: Path, node: str) -> Storage:
    """Write a file to disk, read it back, rename it, remove it, and ask for room; leaves nothing behind.

    Raises: OSError that says what could not be done; ValueError if other bytes come back.
    """
    began = time.monotonic()
    path = folder / f".doctor-{file_name(node)}-{os.getpid()}"
    renamed = path.with_name(f"{path.name}-renamed")
    content = os.urandom(_BYTES)
    try:
        write(path, content)
        if _read_from_disk(path) != content:
            raise ValueError(f"{folder} gives back other bytes than were written")
        path.rename(renamed)
    finally:
        for each in (path, renamed):
            with suppress(OSError):
                each.unlink()
    found = os.statvfs(folder)
    return Storage(
        time.monotonic() - began, found.f_bavail * found.f_frsize, found.f_favail if found.f_files > 0 else None
    )


def write(path: Path, content: bytes) -> None:
    """Write a file to disk; raises OSError."""
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def file_name(node: str) -> str:
    """A node's name as part of a file's."""
    return node.replace("/", "_")


def _read_from_disk(path: Path) -> bytes:
    with path.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # not from this machine's own memory
        return stream.read()


def _gib(count: int) -> str:
    return f"{count / (1 << 30):,.1f} GiB"


def _last_line(answer: Answer) -> str:
    lines = answer.error.strip().splitlines()
    return lines[-1] if lines else f"the examination ended with code {answer.code}"


def reason(error: OSError) -> str:
    """Why something could not be written, in words."""
    return "its disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)


def main(arguments: Sequence[str]) -> int:
    """Print the storage in JSON, or why there is none; 0 or 1."""
    folder, node = Path(arguments[0]), arguments[1]
    try:
        print(json.dumps(asdict(examine_storage(nearest_folder(folder), node))))
    except OSError as error:
        print(f"cannot write, read and rename in {folder}: {reason(error)}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
