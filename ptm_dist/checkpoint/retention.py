"""Which checkpoints stay."""

from __future__ import annotations

from pathlib import Path

from ptm_dist.checkpoint.store import best, list_checkpoints, remove


def prune(directory: Path, keep_last: int) -> list[Path]:
    """Delete all complete checkpoints but the newest `keep_last` and the best by validation loss.

    Call it after a commit, on one rank. Returns what was deleted.
    """
    complete = list_checkpoints(directory)
    kept = {info.path for info in complete[-keep_last:]}
    champion = best(directory)
    if champion is not None:
        kept.add(champion.path)
    deleted = [info.path for info in complete if info.path not in kept]
    for path in deleted:
        remove(path)
    return deleted
