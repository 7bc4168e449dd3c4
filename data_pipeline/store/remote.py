"""Shards that lie behind a URL, read through the cache of this machine."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Literal
from urllib.parse import urlsplit

from data_pipeline.errors import DataError
from data_pipeline.shards import Manifest, MemberEntry, ShardEntry, ShardSet
from data_pipeline.shards.manifest import MANIFEST_NAME
from data_pipeline.store.counters import CacheStatistics, Counters
from data_pipeline.store.fetch import Fetcher
from data_pipeline.store.folder import NOW, CacheFolder, lock_of
from data_pipeline.store.locks import FileLock, locked
from data_pipeline.store.needs import Needs
from data_pipeline.store.options import CacheOptions
from data_pipeline.store.transport import FetchError, open_transport

_POLL_S = 0.02


class RemoteFiles:
    """The files of a data set behind a URL (:class:`data_pipeline.shards.files.ShardFiles`).

    A shard is fetched by one process of the machine, while the others that need it wait. May be forked and pickled.

    Args:
        url: of the folder that holds ``manifest.json``.
        cache: where shards are kept, and how they are fetched.
        manifest_text: the manifest, if somebody has fetched it already.

    Attributes:
        location: the URL, without what may be secret.
        manifest: what the folder holds.
        cache: the folder on this machine, shared by data sets and processes.

    Raises:
        DataError: no manifest, no right to write in the cache folder, or a limit below the size of a shard.
    """

    def __init__(self, url: str, cache: CacheOptions, manifest_text: str | None = None) -> None:
        self._url = url
        self._options = cache
        self._transport = open_transport(url)
        self.location = self._transport.address("").rstrip("/")
        with self._local_errors():
            self.cache = CacheFolder(cache.directory, cache.limit_bytes)
            self._counters = Counters(cache.directory)
        self._fetcher = Fetcher(self._transport, cache, self._counters)
        self._text = self._fetch_manifest() if manifest_text is None else manifest_text
        self.manifest = Manifest.parse(self._text, self.location)
        self._check_limit()
        self._directory = cache.directory / _folder_name(self.manifest)
        with self._local_errors():
            self._directory.mkdir(exist_ok=True)

    def manifest_text(self) -> str:
        """The content of ``manifest.json``, as it was when the set was opened."""
        return self._text

    def local_path(self, entry: ShardEntry) -> Path:
        """A whole and checked shard in the cache, fetched if need be.

        The file may be evicted later, but not before its reader has had the time to map it.

        Raises:
            BrokenShard: the shard cannot be had, after all retries; says the URL and the cause.
            DataError: the cache cannot be written.
        """
        path = self.path_of(entry)
        with self._local_errors():
            if self.cache.use(path, entry.bytes):
                return path
            begin = time.monotonic()
            try:
                with locked(lock_of(path)):
                    self._wait_and_fetch(entry, path)
            finally:
                self._counters.add("wait_s", time.monotonic() - begin)
        return path

    def fetch_ahead(
        self, entry: ShardEntry, distance: float, stop: Callable[[], bool]
    ) -> Literal["there", "fetched", "busy", "no room"]:
        """Put a shard into the cache before it is needed, if that takes no room from what is needed as soon.

        Args:
            entry: the shard.
            distance: steps until it is read.
            stop: asked now and then whether to give up.

        Returns: what became of it; "busy" means that another process is fetching it.

        Raises:
            BrokenShard, DataError: as :meth:`local_path`.
            FetchStoppedError: because of `stop`.
        """
        path = self.path_of(entry)
        with self._local_errors():
            if self.is_there(entry):
                return "there"
            lock = FileLock.acquire(lock_of(path), wait=False)
            if lock is None:
                return "busy"
            try:
                if self.is_there(entry):
                    return "there"
                partial = self.cache.reserve(path, entry.bytes, distance, self._counters)
                if partial is None:
                    return "no room"
                self._fetcher.fetch(entry, partial, stop)
                self.cache.publish(partial, path)
                return "fetched"
            finally:
                lock.release()

    def members(self, entry: ShardEntry, names: Sequence[str]) -> dict[str, bytes]:
        """Some members of a shard, checked, without the rest of it where the server can do that.

        Args:
            entry: the shard.
            names: of members that lie side by side, without the key, such as ``format.STRUCTURE``.

        Raises:
            BrokenShard: they cannot be had, after all retries; says the URL and the cause.
            DataError: the cache cannot be written.
        """
        if not self.is_there(entry):
            found = self._fetcher.members(entry, names)
            if found is not None:
                return found
        with self.local_path(entry).open("rb") as stream:
            return {name: _read(stream, entry.members[name]) for name in names}

    def announce(self, needs: Needs, step: int, uses: Iterable[tuple[int, int]]) -> None:
        """Tell the other processes of the machine what this one reads next.

        Args:
            needs: the place to say so, from the cache folder.
            step: that this process is at.
            uses: shard numbers with the step of their next use.
        """
        shards = self.manifest.shards
        named = {self.cache.name_of(self.path_of(shards[number])): use for number, use in uses}
        with self._local_errors():
            self.cache.announce(needs, step, named)

    def is_there(self, entry: ShardEntry) -> bool:
        """Whether a shard is in the cache."""
        return self.path_of(entry).exists()

    def path_of(self, entry: ShardEntry) -> Path:
        """Where a shard lies in the cache if it is there."""
        return self._directory / entry.name

    def statistics(self) -> CacheStatistics:
        """What was done so far by this process and those forked from it."""
        return self._counters.statistics()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._url, self._options, self._text)

    def _wait_and_fetch(self, entry: ShardEntry, path: Path) -> None:
        """Fetch a shard under its lock, unless another process was faster."""
        while not self.cache.use(path, entry.bytes):
            partial = self.cache.reserve(path, entry.bytes, NOW, self._counters)
            if partial is None:
                time.sleep(_POLL_S)  # all room is taken by shards that arrive at this moment
                continue
            self._fetcher.fetch(entry, partial)
            self.cache.publish(partial, path)

    def _fetch_manifest(self) -> str:
        """A manifest that is not damaged.

        Raises: DataError if there is none.
        """
        address = self._transport.address(MANIFEST_NAME)
        for attempt in range(self._options.retries + 1):
            try:
                text = self._fetcher.text(MANIFEST_NAME)
                Manifest.parse(text, self.location)
            except FetchError as error:
                advice = "is it a folder made by `ptm data build`?" if error.cause == "missing" else "check the server"
                raise DataError(f"{address} cannot be fetched: {error}; {advice}") from error
            except (UnicodeDecodeError, DataError) as error:
                if attempt == self._options.retries:
                    raise DataError(str(error)) from error
                self._counters.add("damaged")
            else:
                return text
        raise AssertionError("unreachable")

    def _check_limit(self) -> None:
        largest = max(self.manifest.shards, key=lambda entry: entry.bytes)
        if largest.bytes > self._options.limit_bytes:
            raise DataError(
                f"the cache {self._options.directory} may hold {self._options.limit_bytes} bytes, but shard "
                f"{largest.name} of {self.location} has {largest.bytes}; raise the limit to at least {largest.bytes}"
            )

    @contextmanager
    def _local_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"cannot use the cache {self._options.directory}: {error.strerror or error}; "
                "free space, choose another folder or set a lower limit"
            ) from error


def _folder_name(manifest: Manifest) -> str:
    """Equal only if shards of equal names are equal files."""
    text = json.dumps([asdict(shard) for shard in manifest.shards], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read(stream: BinaryIO, place: MemberEntry) -> bytes:
    stream.seek(place.offset)
    return stream.read(place.size)


def is_remote(location: str) -> bool:
    """Whether shards at this place have to be fetched: a URL, other than of a local file."""
    return "://" in location and urlsplit(location).scheme not in ("file", "local")


def open_shards(location: str | Path, cache: CacheOptions) -> ShardSet:
    """Open a set of shards; those behind a URL are read through the cache, those of a folder where they lie.

    Raises: DataError as :meth:`ShardSet.open` and :class:`RemoteFiles`.
    """
    place = str(location)
    if is_remote(place):
        return ShardSet.open(RemoteFiles(place, cache))
    return ShardSet.open(Path(urlsplit(place).path) if "://" in place else Path(place))
