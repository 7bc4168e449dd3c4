"""Byte ranges of remote files: http and https by the standard library, everything else by fsspec."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import SplitResult, quote, urlsplit, urlunsplit

from data_pipeline.errors import DataError
from data_pipeline.store.counters import Cause

_CHUNK = 1 << 18
_WORTH_A_RETRY = {408, 425, 429}


class FetchError(Exception):
    """A request that failed.

    Attributes:
        cause: the kind of failure.
        final: trying again will not help.
    """

    def __init__(self, cause: Cause, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.cause = cause
        self.final = final


@dataclass(frozen=True)
class Answer:
    """What a server sends.

    Attributes:
        ranged: these are the bytes that were asked for; otherwise the whole file.
        file_bytes: size of the file as the server knows it; None if it does not say.
        chunks: the bytes, too few of them if the connection broke.
        close: ends the request, also before all has been read.
    """

    ranged: bool
    file_bytes: int | None
    chunks: Iterator[bytes]
    close: Callable[[], None]


class Transport(Protocol):
    """Files below one URL, read by ranges from any thread of any process."""

    def address(self, name: str) -> str:
        """The URL of a file, for messages: without what may be secret."""
        ...

    def read(self, name: str, begin: int, end: int | None, *, timeout_s: float, fresh: bool = False) -> Answer:
        """Request the bytes [begin, end) of a file.

        Args:
            name: of the file, below the URL.
            begin: first byte.
            end: byte after the last; None for all that follow.
            timeout_s: seconds without an answer until the request has failed.
            fresh: ask caches on the way not to answer.

        Raises: FetchError, also while the chunks are read.
        """
        ...


def open_transport(url: str) -> Transport:
    """The transport for a URL.

    Raises: DataError if there is none, or a package for it is missing.
    """
    return HttpTransport(url) if urlsplit(url).scheme in ("http", "https") else FsspecTransport(url)


class HttpTransport:
    """Files of a web server. A query in the URL, such as a signature, is sent along and never printed.

    Proxies are those of the environment.
    """

    def __init__(self, url: str) -> None:
        self._base = urlsplit(url)

    def address(self, name: str) -> str:
        """The URL of a file without its query."""
        return urlunsplit(self._url(name)._replace(query="", fragment=""))

    def read(self, name: str, begin: int, end: int | None, *, timeout_s: float, fresh: bool = False) -> Answer:
        """See :class:`Transport`."""
        headers = {"Accept-Encoding": "identity"}
        if begin or end is not None:
            headers["Range"] = f"bytes={begin}-{'' if end is None else end - 1}"
        if fresh:
            headers["Cache-Control"] = "no-cache"
        request = urllib.request.Request(urlunsplit(self._url(name)), headers=headers)
        with _http_errors(timeout_s):
            response = urllib.request.urlopen(request, timeout=timeout_s)
        ranged = response.status == http.HTTPStatus.PARTIAL_CONTENT
        size = (
            response.headers.get("Content-Range", "").rpartition("/")[2]
            if ranged
            else response.headers["Content-Length"]
        )
        file_bytes = int(size) if size and size.isdecimal() else None
        return Answer(ranged, file_bytes, _chunks(response, timeout_s), response.close)

    def _url(self, name: str) -> SplitResult:
        return self._base._replace(path=f"{self._base.path.rstrip('/')}/{quote(name)}")


def _chunks(response: http.client.HTTPResponse, timeout_s: float) -> Iterator[bytes]:
    while True:
        try:
            with _http_errors(timeout_s):
                data = response.read(_CHUNK)
        except http.client.IncompleteRead as error:
            data = error.partial
        if not data:
            return
        yield data


@contextmanager
def _http_errors(timeout_s: float) -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        raise _status_error(error.code) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise _timeout(timeout_s) from error
        raise FetchError("connection", f"no connection ({error.reason})") from error
    except TimeoutError as error:
        raise _timeout(timeout_s) from error
    except http.client.IncompleteRead:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise FetchError("connection", f"the connection broke ({type(error).__name__}: {error})") from error


def _status_error(status: int) -> FetchError:
    message = f"HTTP {status}"
    if status in (404, 410):
        return FetchError("missing", f"{message}, it is missing", final=True)
    if status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return FetchError("truncated", f"{message}, it is shorter than the manifest says", final=True)
    if status >= 500 or status in _WORTH_A_RETRY:
        return FetchError("server_error", message)
    return FetchError("refused", message, final=True)


def _timeout(timeout_s: float) -> FetchError:
    return FetchError("timeout", f"timed out after {timeout_s:g} s")


class FsspecTransport:
    """Files of any other store that fsspec knows, such as s3; settings and keys come from its own environment.

    Raises:
        DataError: fsspec does not know the URL, or the package for it is missing.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._opened: tuple[int, Any, str] = (0, None, "")
        self._file_system()

    def __getstate__(self) -> dict[str, Any]:
        return {"_url": self._url, "_opened": (0, None, "")}

    def address(self, name: str) -> str:
        """The URL of a file."""
        return f"{self._url}/{name}"

    def read(self, name: str, begin: int, end: int | None, *, timeout_s: float, fresh: bool = False) -> Answer:
        """See :class:`Transport`; `fresh` says nothing here, and only file systems with an event loop time out."""
        from fsspec import asyn

        system, root = self._file_system()
        path = f"{root}/{name}"
        try:
            if system.async_impl:
                data = asyn.sync(system.loop, system._cat_file, path, start=begin, end=end, timeout=timeout_s)
            else:
                data = system.cat_file(path, start=begin, end=end)
        except FileNotFoundError:
            raise FetchError("missing", "it is missing", final=True) from None
        except PermissionError as error:
            raise FetchError("refused", f"no right to read it ({error})", final=True) from error
        except TimeoutError:
            raise _timeout(timeout_s) from None
        except Exception as error:  # every file system has errors of its own
            raise FetchError("connection", f"{type(error).__name__}: {error}") from error
        return Answer(True, None, iter((data,)), lambda: None)

    def _file_system(self) -> tuple[Any, str]:
        """The file system and the path of the URL in it; every process has its own connections."""
        import fsspec

        process, system, root = self._opened
        if process != os.getpid():
            try:
                system, root = fsspec.core.url_to_fs(self._url, skip_instance_cache=True, use_listings_cache=False)
            except ImportError as error:
                raise DataError(f"cannot open {self._url}: {error}; pip install 'ptm-dist[data]'") from error
            except ValueError as error:
                raise DataError(f"cannot open {self._url}: {error}") from error
            self._opened = (os.getpid(), system, root.rstrip("/"))
        return self._opened[1], self._opened[2]
