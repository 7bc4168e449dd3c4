"""Which checkpoints stay."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ptm_dist.checkpoint.store import MANIFEST_FILE, CheckpointInfo, list_checkpoints, remove

VALIDATION = "validation_"
"""Before the name of a validation figure in a manifest's metrics."""


@dataclass(frozen=True)
class Best:
    """What makes a checkpoint the best.

    Attributes:
        by: figure of validation rows.
        direction: auto takes the highest of an accuracy and the lowest of anything else.
    """

    by: str = "loss"
    direction: Literal["auto", "lowest", "highest"] = "auto"

    @property
    def metric(self) -> str:
        """Name of the figure in a manifest."""
        return f"{VALIDATION}{self.by}"

    def improves(self, value: float, on: float | None) -> bool:
        """Whether a figure is better than the best one so far (None: there is none)."""
        return on is None or self._cost(value) < self._cost(on)

    def champion(self, infos: Sequence[CheckpointInfo]) -> CheckpointInfo | None:
        """The best of some checkpoints, the newest of equals; None if none was validated by this figure."""
        measured = [info for info in infos if self.metric in info.manifest.metrics]
        return min(
            measured, key=lambda info: (self._cost(info.manifest.metrics[self.metric]), -info.step), default=None
        )

    def _cost(self, value: float) -> float:
        highest = self.by.endswith("accuracy") if self.direction == "auto" else self.direction == "highest"
        return -value if highest else value


LOWEST_LOSS = Best()


def prune(directory: Path, keep_last: int, *, keep_every: int = 0, best: Best = LOWEST_LOSS) -> list[Path]:
    """Delete all complete checkpoints but the newest, the milestones, the best, and those :func:`in_use`.

    Call it after a commit, on one rank. A deletion that a kill cuts off leaves a hidden folder, which
    :func:`ptm_dist.checkpoint.store.sweep` removes.

    Args:
        directory: of the checkpoints.
        keep_last: how many of the newest stay.
        keep_every: those at multiples of so many steps stay; 0: none for that.
        best: which is the best.

    Returns: what was deleted.
    """
    complete = list_checkpoints(directory)
    kept = {info.path for info in complete[-keep_last:]}
    if keep_every:
        kept |= {info.path for info in complete if info.step % keep_every == 0}
    champion = best.champion(complete)
    if champion is not None:
        kept.add(champion.path)
    return [info.path for info in complete if info.path not in kept and _remove_unless_in_use(info.path)]


@contextmanager
def in_use(checkpoint: Path) -> Iterator[None]:
    """Keep a checkpoint from being pruned while the body runs, by another run too; the system lets go at death."""
    descriptor = os.open(checkpoint / MANIFEST_FILE, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def _remove_unless_in_use(checkpoint: Path) -> bool:
    descriptor = os.open(checkpoint / MANIFEST_FILE, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove(checkpoint)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
