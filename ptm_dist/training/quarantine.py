"""Shards that a run reads without: agreed by all ranks, remembered in checkpoints, limited."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from data_pipeline.errors import DataError
from data_pipeline.stream import BrokenSource
from ptm_dist.parallel.control import ControlGroup
from ptm_dist.training.data import RecipeData
from ptm_dist.training.journal import Journal

QuarantinedShard = tuple[str, str]
"""Name of the source and of the shard's file."""


class Quarantine:
    """Which shards are read no more; a step is the first one without them for all ranks or for none.

    Args:
        data: of the run.
        control: all ranks.
        journal: told of every shard.
        limit_ppm: millionths of a source's tokens that may lie in quarantine.
        shards: those that the checkpoint remembers from which the run goes on.
    """

    def __init__(
        self,
        data: RecipeData,
        control: ControlGroup,
        journal: Journal,
        limit_ppm: int,
        shards: Sequence[QuarantinedShard] = (),
    ) -> None:
        self._data = data
        self._control = control
        self._journal = journal
        self._limit_ppm = limit_ppm
        self.shards: list[QuarantinedShard] = sorted(shards)
        data.quarantine(self.shards)

    def handle(self, broken: BrokenSource | None) -> Collection[QuarantinedShard] | None:
        """Tell the other ranks of a shard that this one cannot read, if there is any; collective, before every step.

        Returns: all shards in quarantine if there are new ones, else None.
        Raises: DataError if they are more than the limit, the same on every rank.
        """
        if not any(self._control.sums(float(broken is not None))):
            return None
        told = self._control.gather(None if broken is None else (broken.source, broken.shard, str(broken)))
        for source, shard, problem in sorted(entry for entry in told if entry is not None):
            if (source, shard) in self.shards:
                continue
            self.shards = sorted([*self.shards, (source, shard)])
            share = self._share(source)
            self._journal.event("quarantine", source=source, shard=shard, problem=problem, ppm=round(1e6 * share))
            self._journal.say(f"WARNING: {problem}; other samples of {source} are read in its place")
            if 1e6 * share > self._limit_ppm:
                raise DataError(
                    f"{problem}; with it {1e6 * share:.0f} ppm of {source} cannot be read, more than "
                    f"data.broken_limit_ppm={self._limit_ppm}; repair the data, or raise the limit"
                )
        self._data.quarantine(self.shards)
        return self.shards

    def _share(self, source: str) -> float:
        """Part of a source's tokens that lies in quarantine."""
        shards = self._data.train[source]
        names = {name for owner, name in self.shards if owner == source}
        return sum(entry.tokens for entry in shards.manifest.shards if entry.name in names) / shards.num_tokens
