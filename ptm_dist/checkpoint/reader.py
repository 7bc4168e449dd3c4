"""Reading a checkpoint's files, of which a rank takes the bytes that it needs."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from ptm_dist.checkpoint.stored_tensor import find_tensor, read_whole


class PartReader(FileSystemReader):
    """DCP's reader, but of a saved box it reads the part that is wanted, into the memory where it is wanted.

    DCP's own reads the whole box for any part of it: with ZeRO-3 over n ranks, each rank would read all of a
    checkpoint that one process saved.
    """

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill what was planned; the files are read from front to back."""
        by_file: dict[str, list[ReadItem]] = defaultdict(list)
        for item in plan.items:
            by_file[self.storage_data[item.storage_index].relative_path].append(item)
        for name, items in by_file.items():
            self._read_file(Path(self.path) / name, items, planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read_file(self, path: Path, items: list[ReadItem], planner: LoadPlanner) -> None:
        with path.open("rb", buffering=0) as file:
            for item in sorted(items, key=lambda item: self.storage_data[item.storage_index].offset):
                place = self.storage_data[item.storage_index]
                target = planner.resolve_tensor(item).detach()
                stored = find_tensor(file, place.offset, place.length)
                if stored is not None:
                    stored.read_box(tuple(item.storage_offsets), target)
                else:
                    ranges = zip(item.storage_offsets, item.lengths, strict=True)
                    part = tuple(slice(begin, begin + size) for begin, size in ranges)
                    target.copy_(read_whole(file, place.offset, place.length)[part])
                planner.commit_tensor(item, target)


class RememberingReader(PartReader):
    """Reads what a checkpoint holds once, however often it is asked."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._remembered: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What DCP needs to know before it plans."""
        if self._remembered is None:
            self._remembered = super().read_metadata(*args, **kwargs)
        return self._remembered
