"""The mapped shards of a process: a bounded number, opened when they are asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path

from data_pipeline.shards.errors import BrokenShard
from data_pipeline.shards.files import ShardFiles
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.open_shard import CheckedBlocks, OpenShard

_MAX_OPEN = 256
"""Shards mapped at one time by one process; each takes a file descriptor, of which there are often 1024."""


class OpenShards:
    """Gives shards by number; the least recently used maps are closed, but what they found whole is remembered.

    Attributes:
        quarantined: numbers of the shards whose text may not be read.
    """

    def __init__(self, files: ShardFiles, manifest: Manifest, quarantined: Collection[int]) -> None:
        self.quarantined = frozenset(quarantined)
        self._files = files
        self._manifest = manifest
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._checked: dict[int, CheckedBlocks] = {}
        self._folder_changed = 0

    def __contains__(self, number: int) -> bool:
        return number in self._open

    def text(self, number: int) -> OpenShard:
        """A shard whose tokens may be read.

        Raises: BrokenShard if it is in quarantine, or cannot be had or mapped.
        """
        if number in self.quarantined:
            name = self._manifest.shards[number].name
            raise BrokenShard(
                name, f"shard {name} of {self._files.location} is in quarantine; repair it, then release it"
            )
        return self.get(number)

    def get(self, number: int) -> OpenShard:
        """A shard, also one in quarantine.

        Raises: BrokenShard if it cannot be had or mapped.
        """
        shard = self._open.get(number)
        if shard is None:
            shard = self._mapped(number)
            self._open[number] = shard
            self._checked[number] = shard.checked
            if len(self._open) > _MAX_OPEN:
                self._open.popitem(last=False)
        else:
            self._open.move_to_end(number)
        return shard

    def _mapped(self, number: int) -> OpenShard:
        entry = self._manifest.shards[number]
        while True:
            path = self._files.local_path(entry)
            self._drop_evicted(path.parent)
            try:
                return OpenShard(path, entry, self._manifest.token_dtype, self._checked.get(number))
            except BrokenShard:
                if path.exists():
                    raise  # otherwise it was evicted before it was mapped

    def _drop_evicted(self, folder: Path) -> None:
        """Unmap files that are gone: a cache gets their room back only then."""
        changed = folder.stat().st_mtime_ns
        if changed != self._folder_changed:
            self._folder_changed = changed
            for number in [number for number, shard in self._open.items() if not shard.path.exists()]:
                del self._open[number]
