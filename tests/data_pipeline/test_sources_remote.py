from __future__ import annotations

import asyncio
import functools
import gzip
import http.server
import json
import sys
import threading
import urllib.parse
from contextlib import contextmanager

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web

from data_pipeline.errors import DataError
from data_pipeline.sources import SourceOptions, cut_sources, describe_files, find_sources, read_documents, read_piece
from data_pipeline.sources import remote as remote_module


def lines(count):
    return "".join(json.dumps({"text": f"text {number} 中"}, ensure_ascii=False) + "\n" for number in range(count))


@pytest.fixture
def folder(tmp_path):
    """The same 400 documents in every format."""
    (tmp_path / "a.jsonl").write_text(lines(400))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(400).encode()))
    (tmp_path / "a.txt").write_text("\n\n".join(f"text {number} 中" for number in range(400)))
    pq.write_table(
        pa.table({"text": [f"text {number} 中" for number in range(400)]}), tmp_path / "a.parquet", row_group_size=50
    )
    return tmp_path


EXPECTED = [f"text {number} 中" for number in range(400)]
NAMES = ["a.jsonl", "a.jsonl.gz", "a.txt", "a.parquet"]


def texts_of_pieces(url, piece_bytes=1_000):
    files = find_sources([url])
    pieces = cut_sources(files, SourceOptions(), piece_bytes)
    return pieces, [document.text for piece in pieces for document in read_piece(files, piece, SourceOptions())]


@contextmanager
def web_server(handler):
    """A server that answers every request by ``handler``, an aiohttp coroutine; yields its address."""
    loop = asyncio.new_event_loop()
    application = web.Application()
    application.router.add_get("/{name:.*}", handler)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    loop.run_until_complete(runner.setup())
    site = web.TCPSite(runner, "127.0.0.1", 0)
    loop.run_until_complete(site.start())
    port = site._server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def server_without_ranges(folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def files_of(folder, requests=None):
    async def handler(request):
        if requests is not None:
            requests.append((request.method, request.headers.get("Range")))
        path = folder / request.match_info["name"]
        return web.FileResponse(path) if path.exists() else web.Response(status=404)

    return handler


@pytest.mark.parametrize("name", NAMES)
def test_web_servers_with_ranges_give_pieces(folder, name):
    with web_server(files_of(folder)) as address:
        pieces, texts = texts_of_pieces(f"{address}/{name}?token=secret")
        (file,) = find_sources([f"{address}/{name}?token=secret"])
        assert describe_files([f"{address}/{name}"]) == describe_files([str(folder / name)])
    assert texts == EXPECTED
    assert (file.name, file.bytes, file.ranges) == (name, (folder / name).stat().st_size, True)
    assert file.version
    assert len(pieces) == {"a.jsonl": 10, "a.jsonl.gz": 1, "a.txt": 6, "a.parquet": 3}[name]


def test_a_piece_reads_only_its_part_of_a_large_file(tmp_path):
    (tmp_path / "a.jsonl").write_text(("{}" + " " * 1_000 + "\n") * 20_000)
    requests = []
    with web_server(files_of(tmp_path, requests)) as address:
        files = find_sources([f"{address}/a.jsonl"])
        piece = cut_sources(files, SourceOptions(), 1 << 20)[12]
        requests.clear()
        with pytest.raises(DataError, match=rf"{address}/a\.jsonl at byte \d+: no string field 'text'"):
            list(read_piece(files, piece, SourceOptions()))
    ranges = [header for method, header in requests if method == "GET"]
    assert len(ranges) == 1
    first, last = map(int, ranges[0].removeprefix("bytes=").split("-"))
    assert first == piece.begin - 1
    assert last - first <= 4 << 20


@pytest.mark.parametrize("name", NAMES)
def test_web_servers_without_ranges_are_read_from_the_beginning(folder, name):
    with server_without_ranges(folder) as address:
        (file,) = find_sources([f"{address}/{name}"])
        pieces, texts = texts_of_pieces(f"{address}/{name}")
    assert not file.ranges
    assert [(piece.begin, piece.end, piece.weight) for piece in pieces] == [(0, 1, (folder / name).stat().st_size)]
    assert texts == EXPECTED


@pytest.mark.parametrize("name", NAMES)
def test_a_web_server_that_does_not_tell_the_size_is_read_all_the_same(folder, name):
    async def handler(request):
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write((folder / name).read_bytes())
        return response

    with web_server(handler) as address:
        (file,) = find_sources([f"{address}/{name}"])
        assert (file.bytes, file.ranges) == (0, False)
        assert texts_of_pieces(f"{address}/{name}")[1] == EXPECTED


def test_a_gz_file_that_the_server_calls_gzip_encoded_is_unpacked_once(folder):
    async def handler(request):
        return web.FileResponse(folder / "a.jsonl.gz", headers={"Content-Encoding": "gzip"})

    with web_server(handler) as address:
        assert texts_of_pieces(f"{address}/a.jsonl.gz")[1] == EXPECTED


def test_a_server_that_packs_what_it_sends_is_asked_not_to(folder):
    async def handler(request):
        response = web.Response(body=(folder / "a.jsonl").read_bytes())
        response.enable_compression()
        return response

    with web_server(handler) as address:
        assert texts_of_pieces(f"{address}/a.jsonl")[1] == EXPECTED


def test_reading_goes_on_after_a_failed_request(folder, monkeypatch):
    monkeypatch.setattr(remote_module, "_PAUSE_SECONDS", 0.001)
    asked = []

    async def handler(request):
        if "Range" in request.headers:
            asked.append(request.headers["Range"])
            if len(asked) % 3:
                return web.Response(status=503)
        return web.FileResponse(folder / "a.jsonl")

    with web_server(handler) as address:
        files = find_sources([f"{address}/a.jsonl"])
        assert files[0].ranges
        piece = cut_sources(files, SourceOptions(), 4_000)[1]
        asked.clear()
        found = [document.text for document in read_piece(files, piece, SourceOptions())]
    assert len(asked) == 3
    assert len(set(asked)) == 1
    assert found == EXPECTED[EXPECTED.index(found[0]) :][: len(found)] and len(found) > 50


def test_a_server_that_keeps_failing_ends_in_one_message_without_the_query(folder, monkeypatch):
    monkeypatch.setattr(remote_module, "_PAUSE_SECONDS", 0.001)
    broken = []

    async def handler(request):
        return web.Response(status=503) if broken else web.FileResponse(folder / "a.jsonl")

    with web_server(handler) as address:
        files = find_sources([f"{address}/a.jsonl?token=secret"])
        broken.append(True)
        with pytest.raises(DataError, match=r"cannot read http://127.*/a\.jsonl: ") as caught:
            list(read_piece(files, cut_sources(files, SourceOptions(), 1 << 20)[0], SourceOptions()))
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("change", [lambda text: text[:500], lambda text: text + text])
def test_a_remote_file_that_changes_is_an_error_that_says_so(folder, change):
    path = folder / "a.jsonl"
    for server in (lambda: web_server(files_of(folder)), lambda: server_without_ranges(folder)):
        path.write_text(lines(400))
        with server() as address:
            files = find_sources([f"{address}/a.jsonl"])
            path.write_text(change(lines(400)))
            with pytest.raises(DataError, match="changed while it was read"):
                for piece in cut_sources(files, SourceOptions(), 1 << 20):
                    list(read_piece(files, piece, SourceOptions()))


def test_remote_files_that_are_not_there_are_named(folder, monkeypatch):
    monkeypatch.setattr(remote_module, "_PAUSE_SECONDS", 0.001)
    with web_server(files_of(folder)) as address:
        with pytest.raises(DataError, match=r"cannot read http://.*/no\.jsonl: 404.*Not Found"):
            find_sources([f"{address}/no.jsonl?token=secret"])
        with pytest.raises(DataError, match="unknown file type"):
            find_sources([f"{address}/a.parquet?x=.csv", f"{address}/"])
    with pytest.raises(DataError, match=r"cannot read http://127\.0\.0\.1:9/a\.jsonl: .*connect"):
        find_sources(["http://127.0.0.1:9/a.jsonl"])
    with pytest.raises(DataError, match="Protocol not known: nowhere"):
        find_sources(["nowhere://a.jsonl"])


def test_a_listing_of_a_web_server_can_be_globbed(folder):
    with server_without_ranges(folder) as address:
        found = find_sources([f"{address}/*.jsonl*", f"{address}/a.txt"])
    assert [file.location for file in found] == [f"{address}/{name}" for name in ("a.jsonl", "a.jsonl.gz", "a.txt")]


@pytest.fixture(scope="module")
def bucket():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        files = fsspec.filesystem("s3")
        files.mkdir("corpus")
        yield "s3://corpus", files
    server.stop()


@pytest.mark.parametrize("name", NAMES)
def test_objects_of_s3_read_like_local_files(folder, bucket, name):
    address, files = bucket
    files.put(str(folder / name), f"corpus/part #1/{name}")
    (file,) = find_sources([f"{address}/part*/{name}"])
    assert file.location == f"{address}/part #1/{name}"
    assert (file.name, file.bytes, file.ranges) == (name, (folder / name).stat().st_size, True)
    assert file.version
    pieces, texts = texts_of_pieces(f"{address}/part #1/{name}")
    assert texts == EXPECTED
    assert len(pieces) > 1 or name.endswith("gz")


@pytest.mark.timeout(20)
def test_an_s3_object_that_was_replaced_or_is_not_there_is_noticed(bucket, monkeypatch):
    address, files = bucket
    files.pipe("corpus/changing.jsonl", lines(10).encode())
    found = find_sources([f"{address}/changing.jsonl"])
    files.pipe("corpus/changing.jsonl", lines(11).encode())
    with pytest.raises(DataError, match="changed while it was read"):
        list(read_piece(found, cut_sources(found, SourceOptions(), 1 << 20)[0], SourceOptions()))
    monkeypatch.setattr(remote_module, "_PAUSE_SECONDS", 3_600)  # what is not there is not asked for again
    with pytest.raises(DataError, match="no file matches"):
        find_sources([f"{address}/nothing/*.jsonl"])
    with pytest.raises(DataError, match=r"cannot read s3://corpus/no\.jsonl: no such file"):
        find_sources([f"{address}/no.jsonl"])


def test_any_file_system_of_fsspec_works_and_mixes_with_local_files(folder):
    files = fsspec.filesystem("memory")
    files.pipe("/corpus/b.jsonl", lines(3).encode())
    files.pipe("/corpus/empty.parquet", b"")
    try:
        found = find_sources(["memory://corpus/*.jsonl", str(folder / "a.jsonl")])
        assert [urllib.parse.urlsplit(file.location).scheme for file in found] == ["", "memory"]
        assert texts_of_pieces("memory://corpus/b.jsonl", 7)[1] == EXPECTED[:3]
        assert texts_of_pieces("memory://corpus/empty.parquet") == ([], [])
        assert len(list(read_documents(["memory://corpus/*.jsonl", str(folder / "a.jsonl")]))) == 403
    finally:
        files.rm("/corpus", recursive=True)


def test_a_missing_library_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(DataError, match=r"cannot read gs://bucket/a\.jsonl: .*gcsfs"):
        find_sources(["gs://bucket/a.jsonl"])
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(DataError, match=r"cannot read http://localhost/a\.jsonl: .*aiohttp.*ptm-dist\[data\]"):
        find_sources(["http://localhost/a.jsonl"])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"a\.parquet: parquet needs pyarrow; run pip install 'ptm-dist\[data\]'"):
        list(read_documents([str(folder / "a.parquet")]))
