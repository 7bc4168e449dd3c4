"""Memory of the host that one step frees is kept for the next one.

A step on the CPU frees tensors of many megabytes. glibc gives such blocks back to the system, which fills each page
with zeros before the next step may have it: up to a third of a step's time.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Numbers of the parameters in malloc.h."""
_NEVER = 2**31 - 1
_GROWTH = 64 * 2**20
"""Bytes by which the heap grows at least: fewer calls of the system."""


def keep_freed_memory() -> bool:
    """Have this process take memory from its heap alone and never give any back; for its whole life.

    What it holds grows to the most it ever needs at a time, and some percent for gaps between blocks.

    Returns: whether the C library knows how; without, memory is given back as before.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(key, value) for key, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _GROWTH)))
