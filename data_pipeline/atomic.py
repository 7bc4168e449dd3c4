"""Files and folders that appear whole or not at all: temporary name, fsync, rename."""

from __future__ import annotations

import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from data_pipeline.errors import DataError


@contextmanager
def atomic_file(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Write a file that appears under its name only when it is complete and on disk.

    Args:
        path: final name; parent folders are made; a file of that name is replaced.
        durable: wait for the disk; else a power cut, but no kill, may leave a file of the right name without content.

    Yields: a binary stream; leaving the block normally publishes the file, an exception leaves nothing behind.
    Raises: DataError if the place cannot be written (missing rights, full disk).
    """
    temporary = _temporary_name(path)
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        try:
            with temporary.open("wb") as stream:
                yield stream
                if durable:
                    stream.flush()
                    os.fsync(stream.fileno())
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)
        if durable:
            sync_path(path.parent)


@contextmanager
def atomic_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Build a folder that appears under its name only when everything in it is complete and on disk.

    Temporary folders that killed builds of the same name left on this host are removed first.

    Args:
        path: final name; parent folders are made.
        overwrite: replace a folder of that name; it stays readable until the new one is complete.

    Yields: the empty temporary folder to fill; an exception inside the block removes it.
    Raises: DataError if ``path`` exists and may not be replaced, or if the place cannot be written.
    """
    temporary = _temporary_name(path)
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        temporary.mkdir()
        try:
            yield temporary
            _sync_tree(temporary)
            _publish(temporary, path, overwrite)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync_path(path.parent)


def publish_folder(source: Path, path: Path, *, overwrite: bool = False) -> None:
    """Rename a finished folder beside ``path`` or below it to ``path``, when everything in it is on disk.

    Args:
        source: the folder, on the same file system.
        path: final name.
        overwrite: replace a folder of that name; it stays readable until then.

    Raises: DataError if ``path`` exists and may not be replaced.
    """
    _sweep(path)
    _sync_tree(source)
    _publish(source, path, overwrite)
    sync_path(path.parent)


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn errors of the operating system into a DataError that names the place."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"cannot write {path}: {reason}; free space or choose another place") from error


def _publish(temporary: Path, path: Path, overwrite: bool) -> None:
    replaced = path.with_name(f"{_temporary_name(path).name}-replaced")
    if path.exists():
        if not overwrite:
            raise DataError(f"{path} already exists; remove it or choose another output folder")
        path.rename(replaced)
    temporary.rename(path)
    if replaced.is_dir():
        shutil.rmtree(replaced)
    else:
        replaced.unlink(missing_ok=True)


def _temporary_name(path: Path) -> Path:
    # Host and process id tell a later run whether the writer is dead; the rest keeps two writers apart.
    return path.with_name(f"{path.name}.tmp-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")


def _sweep(path: Path) -> None:
    prefix = f"{path.name}.tmp-{socket.gethostname()}-"
    for leftover in path.parent.iterdir():
        if not leftover.name.startswith(prefix):
            continue
        process_id = leftover.name.removeprefix(prefix).split("-")[0]
        if not process_id.isdigit() or _is_alive(int(process_id)):
            continue
        if leftover.name.endswith("-replaced") and not path.exists():
            leftover.rename(path)  # killed between the two renames: the old folder is the valid one
        elif leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync_tree(folder: Path) -> None:
    for parent, _, files in os.walk(folder):
        for name in files:
            sync_path(Path(parent, name))
        sync_path(Path(parent))


def sync_path(path: Path) -> None:
    """Put a file, or a folder's names after a rename, on disk, so that they survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
