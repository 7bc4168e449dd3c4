"""One shard from a remote store to a local file: parallel ranges, retries, resume, and a check of every byte."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import count
from pathlib import Path

import xxhash

from data_pipeline.shards.errors import BrokenShard, Damage
from data_pipeline.shards.manifest import ShardEntry
from data_pipeline.shards.verify_shard import damaged_bytes
from data_pipeline.store.counters import Counters
from data_pipeline.store.options import CacheOptions
from data_pipeline.store.partial import PartialFile
from data_pipeline.store.transport import Answer, FetchError, Transport

_LONGEST_PAUSE_S = 60.0
_TICK_S = 0.05


class FetchStoppedError(Exception):
    """The process that fetches in the background was told to end; what has arrived is kept."""


class Fetcher:
    """Gets whole shards; may be used by many threads and after a fork."""

    def __init__(self, transport: Transport, options: CacheOptions, counters: Counters) -> None:
        self._transport = transport
        self._options = options
        self._counters = counters
        self._ranges: bool | None = None

    def text(self, name: str) -> str:
        """A small file in one request.

        Raises: FetchError after the last retry; UnicodeDecodeError if it is no text.
        """
        found: list[bytes] = []

        def attempt() -> None:
            with closing(self._transport.read(name, 0, None, timeout_s=self._options.timeout_s)) as answer:
                found[:] = list(answer.chunks)
            size = sum(map(len, found))
            if answer.file_bytes not in (None, size):
                raise FetchError("truncated", f"{size} of {answer.file_bytes} bytes")

        self._with_retries(attempt, lambda: False)
        return b"".join(found).decode("utf-8")

    def fetch(self, entry: ShardEntry, path: Path, stop: Callable[[], bool] = lambda: False) -> None:
        """Make `path` the whole shard, on disk, every member checked; what it holds already is kept.

        Args:
            entry: the shard.
            path: of the partial file; the caller sees to it that nobody else writes it.
            stop: asked now and then whether to give up.

        Raises:
            BrokenShard: the shard cannot be had, or stays damaged; says the URL and the cause.
            FetchStoppedError: because of `stop`.
            OSError: the place cannot be written.
        """
        with PartialFile(path, entry.bytes, self._options.part_bytes) as partial:
            found: list[Damage] = []
            for attempt in range(self._options.retries + 1):
                if attempt:
                    self._counters.add("refetches")
                    _pause(self._backoff(attempt), stop)
                for damage in found:
                    partial.forget(*damage.range_of(entry.bytes))
                self._complete(entry, partial, attempt > 0, stop)
                found = damaged_bytes(path, entry)
                if not found:
                    partial.sync()
                    self._counters.add("fetched_shards")
                    return
        raise BrokenShard(
            entry.name,
            f"shard {self._transport.address(entry.name)} is damaged: {found[0].what}, "
            f"after {self._options.retries + 1} downloads; upload it again",
        )

    def members(self, entry: ShardEntry, names: Sequence[str]) -> dict[str, bytes] | None:
        """Checked members that lie side by side, in one request; None if the server knows no ranges.

        Raises: BrokenShard as :meth:`fetch`.
        """
        places = {name: entry.members[name] for name in names}
        begin = min(place.offset for place in places.values())
        end = max(place.offset + place.size for place in places.values())
        found: dict[str, bytes] = {}

        def attempt() -> None:
            with closing(self._read(entry, begin, end, fresh=False)) as answer:
                self._ranges = answer.ranged
                data = b"".join(answer.chunks) if answer.ranged else b""
            self._counters.add("fetched_bytes", len(data))
            if answer.ranged and len(data) != end - begin:
                raise FetchError("truncated", f"{len(data)} of {end - begin} bytes")
            for name, place in places.items() if answer.ranged else ():
                found[name] = data[place.offset - begin : place.offset - begin + place.size]
                digest = xxhash.xxh3_64_hexdigest(found[name])
                if digest != place.xxh3:
                    raise FetchError("damaged", f"{entry.key}.{name} has the hash {digest}, {place.xxh3} expected")

        try:
            self._with_retries(attempt, lambda: False)
        except FetchError as error:
            raise self._unfetchable(entry, error) from error
        return found if self._ranges else None

    def _unfetchable(self, entry: ShardEntry, error: FetchError) -> BrokenShard:
        return BrokenShard(
            entry.name,
            f"shard {self._transport.address(entry.name)} cannot be fetched: {error}; "
            "check the server and the network, or upload the shard again",
        )

    def _complete(self, entry: ShardEntry, partial: PartialFile, fresh: bool, stop: Callable[[], bool]) -> None:
        """Fill the missing parts, whatever is in them."""
        missing = partial.missing()
        try:
            if self._ranges is None and missing:
                # Whether the server knows ranges shows in its first answer.
                self._part(entry, partial, missing.pop(0), fresh, stop)
            if self._ranges and missing:
                self._parts(entry, partial, missing, fresh, stop)
            if partial.missing():
                self._with_retries(lambda: self._whole(entry, partial, fresh, stop), stop)
        except FetchError as error:
            raise self._unfetchable(entry, error) from error

    def _parts(
        self, entry: ShardEntry, partial: PartialFile, parts: Sequence[int], fresh: bool, stop: Callable[[], bool]
    ) -> None:
        """Fetch parts at the same time; the first error ends all."""
        todo = iter(parts)
        turn = threading.Lock()
        errors: list[BaseException] = []

        def work() -> None:
            while not errors:
                with turn:
                    part = next(todo, None)
                if part is None:
                    return
                try:
                    self._part(entry, partial, part, fresh, lambda: bool(errors) or stop())
                except BaseException as error:  # raised below, in the thread that asked
                    errors.append(error)

        # Daemons, unlike those of an executor, do not keep a process from ending.
        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(self._options.threads, len(parts)))]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException as error:
            errors.append(error)
            for thread in threads:
                thread.join()
            raise
        if errors:
            raise errors[0]

    def _part(self, entry: ShardEntry, partial: PartialFile, part: int, fresh: bool, stop: Callable[[], bool]) -> None:
        begin, end = partial.range_of(part)

        def attempt() -> None:
            with closing(self._read(entry, begin, end, fresh)) as answer:
                self._ranges = answer.ranged
                if answer.ranged:
                    self._store(answer, partial, begin, end, stop)
                    partial.mark(part, there=True)

        self._with_retries(attempt, stop)

    def _whole(self, entry: ShardEntry, partial: PartialFile, fresh: bool, stop: Callable[[], bool]) -> None:
        """All bytes in one stream, from a server that does not know ranges."""
        with closing(self._read(entry, 0, None, fresh)) as answer:
            self._store(answer, partial, 0, entry.bytes, stop)
        for part in range(partial.num_parts):
            partial.mark(part, there=True)

    def _read(self, entry: ShardEntry, begin: int, end: int | None, fresh: bool) -> Answer:
        answer = self._transport.read(entry.name, begin, end, timeout_s=self._options.timeout_s, fresh=fresh)
        if answer.file_bytes not in (None, entry.bytes):
            answer.close()
            raise FetchError("truncated", f"it has {answer.file_bytes} bytes, {entry.bytes} expected")
        return answer

    def _store(self, answer: Answer, partial: PartialFile, begin: int, end: int, stop: Callable[[], bool]) -> None:
        """Write the bytes [begin, end) as they come."""
        position = begin
        try:
            for data in answer.chunks:
                if stop():
                    raise FetchStoppedError
                if position + len(data) > end:
                    raise FetchError("truncated", f"more than {end - begin} bytes")
                partial.write(position, data)
                position += len(data)
        finally:
            self._counters.add("fetched_bytes", position - begin)
        if position < end:
            raise FetchError("truncated", f"{position - begin} of {end - begin} bytes")

    def _with_retries(self, attempt: Callable[[], None], stop: Callable[[], bool]) -> None:
        for tries in count(1):
            if stop():
                raise FetchStoppedError
            try:
                return attempt()
            except FetchError as error:
                if error.final or tries > self._options.retries:
                    raise FetchError(error.cause, f"{error}; tries: {tries}", final=True) from error
                self._counters.add(error.cause)
            _pause(self._backoff(tries), stop)

    def _backoff(self, tries: int) -> float:
        """Seconds until the next try: doubled each time, with jitter so that many clients do not come together."""
        longest = min(_LONGEST_PAUSE_S, self._options.backoff_s * 2.0 ** (tries - 1))
        # Not the random stream of the process: batches must not depend on the network.
        return random.SystemRandom().uniform(0.5, 1.0) * longest


def _pause(seconds: float, stop: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not stop():
        time.sleep(min(left, _TICK_S))
