"""Files behind a URL, by fsspec: listing, sizes, and reads that survive a short failure."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from data_pipeline.errors import DataError

_ATTEMPTS = 4
_PAUSE_SECONDS = 0.25
_STALLED_SECONDS = 60
_Result = TypeVar("_Result")


def is_url(location: str) -> bool:
    """Whether this names something behind a URL; ``file://`` is a local file."""
    return "://" in location and not location.startswith("file://")


def without_query(location: str) -> str:
    """A URL without its query (on the web, its fragment too); a path as it is."""
    stem = location.partition("?")[0] if is_url(location) else location
    return stem.partition("#")[0] if _is_web(location) else stem


def expand(pattern: str) -> list[str]:
    """The URLs that a URL with or without a glob names.

    Raises: DataError if nothing matches or the storage cannot be listed.
    """
    stem = without_query(pattern) if _is_web(pattern) else pattern
    if not any(sign in stem for sign in ("*", "[") + (() if _is_web(pattern) else ("?",))):
        return [pattern]
    with _failures(pattern):
        files, path = _file_system(pattern)
        found = [str(files.unstrip_protocol(match)) for match in files.glob(path) if not files.isdir(match)]
    if not found:
        raise DataError(f"no file matches '{without_query(pattern)}'; check the address, or whether it can be listed")
    return found


def describe(location: str) -> tuple[int, str, bool]:
    """Size in bytes (0 if the server does not tell), version ("" if unknown), and whether ranges can be read.

    Raises: DataError naming the URL if it cannot be reached or is no file.
    """
    return _retried(location, lambda: _describe(location))


def open_ranges(location: str, size: int) -> io.RawIOBase:
    """Open a URL for reading from anywhere; every read asks for just its bytes, and is tried again when it fails."""
    return _Ranges(location, size)


def open_whole(location: str, size: int) -> io.RawIOBase:
    """Open a URL for one pass from its beginning; ``size`` is checked at the end unless it is 0."""
    return _Whole(location, size)


def changed(location: str, listed: int, now: int) -> DataError:
    """The error of a file that is not any more what was listed."""
    return DataError(
        f"{without_query(location)} changed while it was read: {listed} bytes when it was listed, now {now}; "
        "leave input files alone until the command ends, and start it again"
    )


class _Ranges(io.RawIOBase):
    def __init__(self, location: str, size: int) -> None:
        self._location, self._size, self._at = location, size, 0
        self._stream = _retried(location, self._opened)
        now = getattr(self._stream, "size", size)
        if now != size:
            raise changed(location, size, now)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._at))
        if not wanted:
            return 0
        data = _retried(self._location, lambda: self._read(wanted))
        if len(data) != wanted:
            raise changed(self._location, self._size, self._at + len(data))
        buffer[:wanted] = data
        self._at += wanted
        return wanted

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()

    def _opened(self) -> Any:
        files, path = _file_system(self._location)
        files.invalidate_cache(path)
        # The buffer around this object reads ahead; a second one below it would fetch bytes twice.
        return files.open(path, "rb", block_size=1 << 20, cache_type="none")

    def _read(self, wanted: int) -> bytes:
        self._stream.seek(self._at)
        return bytes(self._stream.read(wanted))


class _Whole(io.RawIOBase):
    def __init__(self, location: str, size: int) -> None:
        self._location, self._size, self._at = location, size, 0
        with _failures(location):
            files, path = _file_system(location)
            self._stream = files.open(path, "rb", block_size=0)

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        with _failures(self._location):
            data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        if self._size and (self._at > self._size or (not data and self._at < self._size)):
            raise changed(self._location, self._size, self._at)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def _is_web(location: str) -> bool:
    return location.startswith(("http://", "https://"))


def _file_system(location: str) -> tuple[Any, str]:
    import fsspec

    options = _web_options() if _is_web(location) else {}
    files, path = fsspec.core.url_to_fs(location, **options)
    return files, path


def _web_options() -> dict[str, Any]:
    import fsspec
    from aiohttp import ClientTimeout

    given = fsspec.config.conf.get("https", fsspec.config.conf.get("http", {})).get("client_kwargs", {})
    # Bytes as they are stored: neither compressed on the way, nor unpacked because a server labels .gz files so.
    # aiohttp's own limit is five minutes for a whole download.
    own = {
        "headers": {**given.get("headers", {}), "Accept-Encoding": "identity"},
        "auto_decompress": False,
        "timeout": ClientTimeout(total=None, sock_connect=_STALLED_SECONDS, sock_read=_STALLED_SECONDS),
    }
    return {"client_kwargs": {**given, **own}}


def _describe(location: str) -> tuple[int, str, bool]:
    files, path = _file_system(location)
    files.invalidate_cache(path)
    info = files.info(path)
    if info.get("type") == "directory":
        raise DataError(f"{without_query(location)} is a folder; name the files in it, for example with '/*.jsonl'")
    names = ("ETag", "etag", "Last-Modified", "LastModified", "last_modified", "mtime", "modified", "created")
    version = next((str(info[name]) for name in names if info.get(name)), "")
    size = int(info.get("size") or 0)
    return size, version.strip('"'), not _is_web(location) or (size > 0 and _sends_ranges(files, path))


def _sends_ranges(files: Any, path: str) -> bool:
    try:
        with files.open(path, "rb", block_size=1, cache_type="none") as stream:
            stream.seek(1)
            stream.read(1)
    except ValueError:
        return False
    return True


def _retried(location: str, attempt: Callable[[], _Result]) -> _Result:
    with _failures(location):
        for number in range(_ATTEMPTS - 1):
            try:
                return attempt()
            except Exception as error:
                if _is_final(error):
                    raise
                time.sleep(_PAUSE_SECONDS * 4**number)
        return attempt()


def _is_final(error: Exception) -> bool:
    cause = _cause(error)
    status = int(getattr(cause, "status", 0))
    wrong = (DataError, ImportError, FileNotFoundError, PermissionError, ValueError)
    return isinstance(cause, wrong) or (400 <= status < 500 and status not in (408, 429))


def _cause(error: BaseException) -> BaseException:
    # The web file system reports every failure as a missing file, and keeps what happened as its cause.
    cause = error.__cause__
    is_web = cause is not None and type(cause).__module__.partition(".")[0] in ("aiohttp", "asyncio")
    return cause if cause is not None and (is_web or isinstance(cause, TimeoutError)) else error


@contextmanager
def _failures(location: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise _failure(location, error) from error


def _failure(location: str, error: Exception) -> DataError:
    place = without_query(location)
    if isinstance(error, ImportError):
        return DataError(f"cannot read {place}: {error}; 'ptm-dist[data]' brings what http(s) and s3 need")
    cause = _cause(error)
    reason = "no such file" if isinstance(cause, FileNotFoundError) else str(cause).replace(location, place)
    return DataError(f"cannot read {place}: {reason or type(cause).__name__}; check the address and your access")
