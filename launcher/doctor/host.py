"""A machine beside its GPUs: cores, main memory, shared memory, temporary files, limits, load."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from launcher.doctor.findings import Finding, Level

_GIB = 1 << 30
_LITTLE_MEMORY = 2 * _GIB
_LITTLE_SHM, _NO_SHM = 1 * _GIB, 16 << 20
_LITTLE_TEMPORARY, _NO_TEMPORARY = 1 * _GIB, 16 << 20
_FEW_OPEN_FILES = 1024
_SHM = Path("/dev/shm")
_MEMINFO = Path("/proc/meminfo")
# Limit and use of the container this process is in, version 2 and version 1.
_GROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))


def memory_free() -> int:
    """Bytes of main memory that can still be had: of the machine, or of the container if that has less."""
    free = []
    for line in _MEMINFO.read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:"):
            free.append(int(line.split()[1]) * 1024)
    for limit, used in _GROUP_FILES:
        with suppress(OSError, ValueError):  # "max" is no number
            free.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
    return max(0, min(free, default=0))


def shm_free() -> int | None:
    """Bytes in shared memory; None where there is none."""
    return shutil.disk_usage(_SHM).free if _SHM.is_dir() else None


def host_findings() -> tuple[Finding, ...]:
    """All there is to say of the machine."""
    return tuple(finding for check in (_memory, _shm, _temporary, _open_files, _load) for finding in check())


def _memory() -> Iterator[Finding]:
    free = memory_free()
    text = f"{free / _GIB:.1f} GiB free, {cores()} cores"
    if free < _LITTLE_MEMORY:
        yield Finding(Level.WARNING, "memory", text, "see what else runs here, or give the container more")
    else:
        yield Finding(Level.OK, "memory", text)


def _shm() -> Iterator[Finding]:
    free = shm_free()
    advice = "data loaders and NCCL need it: start the container with --shm-size or --ipc=host"
    if free is None:
        yield Finding(Level.ERROR, "/dev/shm", "there is none", advice)
        return
    level = Level.ERROR if free < _NO_SHM else Level.WARNING if free < _LITTLE_SHM else Level.OK
    text = f"{free / _GIB:.2f} GiB free"
    yield Finding(level, "/dev/shm", text, "" if level is Level.OK else f"{advice}, or remove what is left there")


def _temporary() -> Iterator[Finding]:
    try:
        place = Path(tempfile.gettempdir())
    except OSError:
        yield Finding(Level.ERROR, "temporary files", "no folder for them can be written", "set TMPDIR to one that can")
        return
    free = shutil.disk_usage(place).free
    level = Level.ERROR if free < _NO_TEMPORARY else Level.WARNING if free < _LITTLE_TEMPORARY else Level.OK
    advice = "" if level is Level.OK else "free some, or set TMPDIR to another disk"
    yield Finding(level, "temporary files", f"{free / _GIB:.1f} GiB free in {place}", advice)


def _open_files() -> Iterator[Finding]:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _FEW_OPEN_FILES:
        advice = f"many shards and processes need more: ulimit -n {64 * _FEW_OPEN_FILES}"
        yield Finding(Level.WARNING, "open files", f"a process may have {soft}", advice)


def _load() -> Iterator[Finding]:
    busy = os.getloadavg()[0]
    if busy > cores():
        detail = f"{busy:.0f} processes want {cores()} cores"
        yield Finding(Level.WARNING, "load", detail, "something else computes here; the slowest node sets the pace")
