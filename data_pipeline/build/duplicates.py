"""Documents that were there before, found over all chunks in bounded memory, the same ones on any number of workers.

First every chunk writes records (key, place) of its documents, sorted by key, in runs of bounded length. Then each
partition of the keys reads its part of all runs, sorts it, and finds the records that have an earlier one of the same
key. A chunk leaves out the documents whose places it finds there. Keys are content hashes ("exact") or hashes of bands
of MinHash signatures ("near"): whoever shares one with an earlier document, dropped or not, is a duplicate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.atomic import atomic_file
from data_pipeline.build.plan import Plan
from data_pipeline.build.reading import ChunkReader, Step, StepNotes
from data_pipeline.errors import DataError
from data_pipeline.filters import FilterOptions, band_hashes, content_hash
from data_pipeline.processes import Note

Kind = Literal["exact", "near"]
Records = NDArray[np.uint64]
"""Places in the first row, keys in the others, [1 + key words, records]; sorted by the last row first."""

_RUN_RECORDS = 1 << 20
_PARTITION_BYTES = 128 << 20
_MAPPED_BYTES = 1 << 16
_ROWS: dict[Kind, int] = {"exact": 3, "near": 2}


@dataclass(frozen=True)
class HashRecord:
    """What hashing a chunk left: the number of records in each run, by kind."""

    runs: dict[Kind, list[int]]


@dataclass(frozen=True)
class HashChunk:
    """Writes the sorted records of chunks below ``folder``."""

    plan: Plan
    folder: Path

    def __call__(self, chunk: int, note: Note) -> HashRecord:
        """Hash the documents of a chunk.

        Raises: DataError if the text cannot be read or the records not be written.
        """
        options = self.plan.request.options.filters
        runs = {kind: _Runs(self.folder, chunk, kind) for kind in kinds(options)}
        notes = StepNotes(chunk, note)
        for ordinal, (_, document) in enumerate(ChunkReader(self.plan, chunk)):
            runs["exact"].add(ordinal, np.frombuffer(content_hash(document.text), "<u8").reshape(-1, 1))
            if "near" in runs:
                runs["near"].add(ordinal, np.unique(band_hashes(document.text, options.near_threshold))[None])
            notes.add(documents=1, text_bytes=len(document.text.encode()))
        record = HashRecord({kind: run.closed() for kind, run in runs.items()})
        notes.finish()
        return record


@dataclass(frozen=True)
class Partition:
    """Keys of one kind whose last word begins alike: part ``number`` of ``count`` equal ones; about so many bytes."""

    kind: Kind
    number: int
    count: int
    bytes: int

    @property
    def name(self) -> str:
        """Name of the file with the places of its duplicates."""
        return f"part-{self.number:06d}.{self.kind}.npy"

    def within(self, records: Records) -> Records:
        """The records of this partition, a view."""
        bounds = [(at << 64) // self.count for at in (self.number, self.number + 1)]
        keys = records[-1]
        begin = int(np.searchsorted(keys, np.uint64(bounds[0])))
        end = keys.size if bounds[1] == 1 << 64 else int(np.searchsorted(keys, np.uint64(bounds[1])))
        return records[:, begin:end]


@dataclass(frozen=True)
class FindDuplicates:
    """Finds the duplicates of partitions in what :class:`HashChunk` wrote.

    Attributes:
        folder: where the records lie.
        hashed: what was left of every chunk.
        partitions: of all kinds, numbered through.
    """

    folder: Path
    hashed: list[HashRecord]
    partitions: list[Partition]

    def __call__(self, number: int, note: Note) -> int:
        """Find and write the duplicates of a partition; how many places they are."""
        partition = self.partitions[number]
        runs = (
            self.folder / _run_name(chunk, run, partition.kind)
            for chunk, record in enumerate(self.hashed)
            for run in range(len(record.runs[partition.kind]))
        )
        parts = [partition.within(_load(path)) for path in runs]
        _, repeated = _sorted_once(np.concatenate(parts, axis=1) if parts else np.empty((2, 0), np.uint64))
        _save(self.folder / partition.name, repeated)
        note(Step(number, finished=True))
        return int(repeated.size)


@dataclass(frozen=True)
class Duplicates:
    """Which documents were there before; none if nobody looked for them.

    Attributes:
        folder: where their places lie.
        hashed: what was left of every chunk.
        partitions: of all kinds.
    """

    folder: Path
    hashed: list[HashRecord]
    partitions: list[Partition]

    def of_chunk(self, chunk: int) -> dict[int, Kind]:
        """The documents of a chunk to leave out, by their number among those that pass the filters."""
        if not self.hashed:
            return {}
        found: dict[int, Kind] = {}
        for kind, runs in reversed(self.hashed[chunk].runs.items()):  # an exact duplicate is called so
            names = [partition.name for partition in self.partitions if partition.kind == kind]
            names += [_repeated_name(chunk, run, kind) for run in range(len(runs))]
            for name in names:
                found |= dict.fromkeys(_ordinals(_load(self.folder / name), chunk), kind)
        return found


def kinds(options: FilterOptions) -> list[Kind]:
    """The kinds of duplicates that are looked for: near ones include exact ones."""
    every: dict[str, list[Kind]] = {"none": [], "exact": ["exact"], "near": ["exact", "near"]}
    return every[options.deduplicate]


def partitions(hashed: Sequence[HashRecord]) -> list[Partition]:
    """As many partitions of each kind as let the records of one fit into memory."""
    result = []
    for kind in hashed[0].runs:
        size = sum(sum(record.runs[kind]) for record in hashed) * 8 * _ROWS[kind]
        count = max(1, -(-size // _PARTITION_BYTES))
        result += [Partition(kind, number, count, size // count) for number in range(count)]
    return result


class _Runs:
    """Records of one kind of a chunk on their way to sorted files."""

    def __init__(self, folder: Path, chunk: int, kind: Kind) -> None:
        self._folder, self._chunk, self._kind = folder, chunk, kind
        self._records: list[Records] = []
        self._held = 0
        self._sizes: list[int] = []

    def add(self, ordinal: int, keys: NDArray[np.uint64]) -> None:
        """Take the keys of a document, [key words, keys]."""
        place = np.full((1, keys.shape[1]), self._chunk << 32 | ordinal, dtype=np.uint64)
        self._records.append(np.concatenate([place, keys]))
        self._held += keys.shape[1]
        if self._held >= _RUN_RECORDS:
            self._write()

    def closed(self) -> list[int]:
        """Write what is left; the number of records in each run."""
        if self._records:
            self._write()
        return self._sizes

    def _write(self) -> None:
        once, repeated = _sorted_once(np.concatenate(self._records, axis=1))
        run = len(self._sizes)
        _save(self._folder / _run_name(self._chunk, run, self._kind), once)
        _save(self._folder / _repeated_name(self._chunk, run, self._kind), repeated)
        self._sizes.append(once.shape[1])
        self._records, self._held = [], 0


def _sorted_once(records: Records) -> tuple[Records, NDArray[np.uint64]]:
    """The first record of each key, sorted, and the places of the others, sorted, each once."""
    records = records[:, np.lexsort(records)]
    first = np.ones(records.shape[1], dtype=np.bool_)
    first[1:] = (records[1:, 1:] != records[1:, :-1]).any(axis=0)
    return records[:, first], np.unique(records[0, ~first])


def _ordinals(places: NDArray[np.uint64], chunk: int) -> list[int]:
    begin, end = np.searchsorted(places, np.array([chunk << 32, (chunk + 1) << 32], dtype=np.uint64))
    ordinals: list[int] = (places[begin:end] & np.uint64(0xFFFFFFFF)).tolist()
    return ordinals


def _run_name(chunk: int, run: int, kind: Kind) -> str:
    return f"run-{chunk:06d}-{run:03d}.{kind}.npy"


def _repeated_name(chunk: int, run: int, kind: Kind) -> str:
    return f"run-{chunk:06d}-{run:03d}.{kind}.repeated.npy"


def _save(path: Path, array: NDArray[np.uint64]) -> None:
    with atomic_file(path) as stream:
        np.save(stream, array)


def _load(path: Path) -> NDArray[np.uint64]:
    try:
        # An empty file cannot be mapped.
        array: NDArray[np.uint64] = np.load(path, mmap_mode="r" if path.stat().st_size > _MAPPED_BYTES else None)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}; build with --overwrite") from error
    return array
