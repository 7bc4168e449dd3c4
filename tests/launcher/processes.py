"""The processes of a run that tests look at and disturb, found by what they write and by their command lines."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

_HEADER = re.compile(r"^--- .* rank (\d+), attempt (\d+), pid (\d+)$", re.MULTILINE)


def worker_pids(logs: Path) -> dict[int, int]:
    """Process ids of the newest start, by rank; some may have ended."""
    newest: dict[int, tuple[int, int]] = {}
    for path in logs.glob("rank_*.log"):
        found = _HEADER.findall(path.read_text(errors="replace"))
        if found:
            rank, attempt, pid = map(int, found[-1])
            newest[rank] = (attempt, pid)
    last = max((attempt for attempt, _ in newest.values()), default=0)
    return {rank: pid for rank, (attempt, pid) in newest.items() if attempt == last and is_alive(pid)}


def programs(module: str, logs: Path) -> list[int]:
    """Process ids of `python -m module LOGS ...`."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if module.encode() in words and str(logs).encode() in words and is_alive(int(folder.name)):
                found.append(int(folder.name))
    return found


def words_of(pid: int) -> list[str]:
    """The command line of a process; nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []


def parent(pid: int) -> int:
    """The process that started another one; 0 if that is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return 0


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
