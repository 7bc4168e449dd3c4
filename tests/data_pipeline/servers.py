"""Real servers of files for tests: a web server with faults, and s3."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import xxhash

Fault = Literal["error", "stall", "truncate", "flip", "reset"]
FaultPlan = Callable[[str, int, int], Fault | None]
"""What happens to the request of a file, from a byte on, for the nth time (from 0)."""


def no_faults(name: str, begin: int, nth: int) -> Fault | None:
    return None


def random_faults(fraction: float, kinds: tuple[Fault, ...], seed: int = 0) -> FaultPlan:
    """Of all requests, `fraction` fail in each of the ways; which ones does not depend on threads or times."""

    def plan(name: str, begin: int, nth: int) -> Fault | None:
        draw = xxhash.xxh3_64_intdigest(f"{seed}/{name}/{begin}/{nth}".encode()) / 2**64
        number = int(draw / fraction)
        return kinds[number] if number < len(kinds) else None

    return plan


def always(kind: Fault, name: str) -> FaultPlan:
    """One file that never arrives whole."""
    return lambda found, begin, nth: kind if found == name else None


@dataclass
class WebServer:
    """Files of a folder on 127.0.0.1.

    Attributes:
        directory: what is served.
        faults: what goes wrong.
        ranges: whether byte ranges are known.
        latency_s: before each answer.
        bytes_per_s: of each connection; 0 for no limit.
        stall_s: how long a stalled answer hangs.
        requests: how often each (file, first byte) was asked for.
    """

    directory: Path
    faults: FaultPlan = no_faults
    ranges: bool = True
    latency_s: float = 0.0
    bytes_per_s: float = 0.0
    stall_s: float = 1.0
    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    faults_made: Counter[str] = field(default_factory=Counter)
    url: str = ""
    ending: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fetches(self, name: str) -> int:
        """How often a file was asked for from its beginning."""
        return self.requests[name, 0]


@contextmanager
def web_server(directory: Path, **options) -> Iterator[WebServer]:
    state = WebServer(directory, **options)
    handler = type("Handler", (_Handler,), {"state": state})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        state.ending.set()
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # of the usual 5, a client with more threads meets pauses of a second


class _Handler(BaseHTTPRequestHandler):
    state: WebServer

    def log_message(self, *arguments):
        pass

    def handle(self):
        try:
            super().handle()
        except OSError:
            self.close_connection = True  # a client may leave at any time

    def do_GET(self):
        state, name = self.state, self.path.split("?")[0].lstrip("/")
        path = state.directory / name
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        begin, end = self._range(len(data))
        with state.lock:
            nth = state.requests[name, begin]
            state.requests[name, begin] += 1
            fault = state.faults(name, begin, nth)
            if fault:
                state.faults_made[fault] += 1
        state.ending.wait(state.latency_s)
        if fault == "error":
            self.send_error(500)
            return
        if fault == "reset":
            self.close_connection = True
            return
        body = bytearray(data[begin:end])
        if fault == "flip":
            body[len(body) // 2] ^= 1
        self._head(begin, end, len(data))
        self._send(bytes(body), fault)

    def _range(self, size):
        header = self.headers.get("Range")
        if header is None or not self.state.ranges:
            return 0, size
        first, _, last = header.removeprefix("bytes=").partition("-")
        return int(first), min(int(last) + 1, size) if last else size

    def _head(self, begin, end, size):
        if self.state.ranges and "Range" in self.headers:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()

    def _send(self, body, fault):
        if fault in ("truncate", "stall"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if fault == "stall":
                self.state.ending.wait(self.state.stall_s)
            self.close_connection = True
            return
        if not self.state.bytes_per_s:
            self.wfile.write(body)
            return
        step = 16384
        for start in range(0, len(body), step):
            self.wfile.write(body[start : start + step])
            self.state.ending.wait(step / self.state.bytes_per_s)


@contextmanager
def s3_server(monkeypatch) -> Iterator[str]:
    """An s3 store with the empty bucket `data`, found by the environment of this process and its children."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    environment = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3", endpoint_url=url).create_bucket(Bucket="data")
    try:
        yield url
    finally:
        server.stop()
