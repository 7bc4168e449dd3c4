from __future__ import annotations

import http.server
import json
import multiprocessing
import os
import pickle
import resource
import signal
import threading
import time
from contextlib import suppress

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.shards import BrokenShard, ShardSet
from data_pipeline.shards.format import STRUCTURE
from data_pipeline.store import CacheOptions, RemoteFiles, is_remote, open_shards
from tests.data_pipeline.servers import always, random_faults, s3_server, web_server
from tests.data_pipeline.shard_files import documents_of, write_shards

FORK = multiprocessing.get_context("fork")
FAULTS = ("error", "stall", "truncate", "flip")
PART = 4096


def build(directory, shards=4, tokens=20_000, seed=0):
    documents = [documents_of([tokens // 8] * 8, 60_000, 100 * seed + number) for number in range(shards)]
    return write_shards(directory, documents, 60_000)


def options(tmp_path, **changed):
    values = {"directory": tmp_path / "cache", "limit_bytes": 1 << 30, "backoff_s": 0.01, "part_bytes": PART}
    return CacheOptions(**(values | {"timeout_s": 20.0} | changed))


def stream(shards):
    return shards.tokens(0, shards.num_tokens)


def cached(tmp_path, pattern="*.tar"):
    return sorted((tmp_path / "cache").glob(f"*/{pattern}"))


def test_remote_tokens_are_those_of_the_folder_and_come_from_the_cache_the_second_time(tmp_path):
    local = build(tmp_path / "data")
    with web_server(tmp_path / "data") as server:
        remote = open_shards(server.url, options(tmp_path))
        np.testing.assert_array_equal(stream(remote), stream(local))
        for path in cached(tmp_path):
            assert path.read_bytes() == (tmp_path / "data" / path.name).read_bytes()
        requests = server.requests.total()
        again = open_shards(server.url, options(tmp_path))
        np.testing.assert_array_equal(stream(again), stream(local))
        assert server.requests.total() == requests + 1  # the manifest
        assert set(server.requests.values()) == {1, 2}
    statistics = remote.files.statistics()
    assert statistics.fetched_bytes == sum(entry.bytes for entry in local.manifest.shards)
    assert (statistics.fetched_shards, statistics.retries, statistics.refetches) == (4, {}, 0)
    assert again.files.statistics().fetched_bytes == 0


def test_five_percent_of_faults_of_every_kind_do_not_change_a_bit(tmp_path):
    local = build(tmp_path / "data")
    with web_server(tmp_path / "data", faults=random_faults(0.05, FAULTS)) as server:
        remote = open_shards(server.url, options(tmp_path, timeout_s=0.4, retries=8))
        order = np.random.default_rng(0).permutation(local.num_tokens // 500)
        for begin in (500 * order).tolist():
            np.testing.assert_array_equal(remote.tokens(begin, begin + 500), local.tokens(begin, begin + 500))
    statistics = remote.files.statistics()
    assert set(server.faults_made) == set(FAULTS)
    # Where the machine is slow, further requests time out.
    assert sum(statistics.retries.values()) >= sum(server.faults_made.values()) - server.faults_made["flip"]
    assert statistics.refetches > 0
    for path in cached(tmp_path):
        assert path.read_bytes() == (tmp_path / "data" / path.name).read_bytes()


def test_a_flipped_bit_costs_one_more_request_of_its_part_only(tmp_path):
    build(tmp_path / "data", shards=1)
    name = "shard-00000.tar"

    def flip_once(found, begin, nth):
        return "flip" if (found, begin, nth) == (name, 2 * PART, 0) else None

    with web_server(tmp_path / "data", faults=flip_once) as server:
        files = RemoteFiles(server.url, options(tmp_path))
        files.local_path(files.manifest.shards[0])
        assert server.requests[name, 2 * PART] == 2
        # The damaged block of 64 KiB is all of the member here; its parts are asked for again, and no others.
        place = files.manifest.shards[0].members["tokens.bin"]
        parts = {count for (found, begin), count in server.requests.items() if begin >= place.offset + place.size}
        assert parts == {1}
    assert files.statistics().refetches == 1


def test_damage_between_the_members_is_found_too(tmp_path):
    build(tmp_path / "data", shards=1)
    name = "shard-00000.tar"
    with web_server(tmp_path / "data", faults=lambda *request: "flip" if request == (name, 0, 0) else None) as server:
        files = RemoteFiles(server.url, options(tmp_path, part_bytes=512))
        path = files.local_path(files.manifest.shards[0])
    assert path.read_bytes() == (tmp_path / "data" / name).read_bytes()
    assert {request: count for request, count in server.requests.items() if count > 1} == {(name, 0): 2}


def test_the_structure_of_a_shard_is_fetched_without_its_text(tmp_path):
    local = build(tmp_path / "data")
    plan = ["error", "truncate", "flip", "reset", None]
    with web_server(tmp_path / "data", faults=lambda name, begin, nth: plan[nth] if begin else None) as server:
        files = RemoteFiles(server.url, options(tmp_path, retries=4))
        for entry, structure in zip(files.manifest.shards, local.structures(), strict=True):
            members = files.members(entry, STRUCTURE)
            assert members["docs.bin"] == structure.documents.tobytes()
            assert members["sents.bin"] == structure.sentences.tobytes()
            assert members["wstart.bin"] == structure.word_start_bits.tobytes()
        assert not cached(tmp_path)
        assert files.statistics().retries == {"server_error": 4, "truncated": 4, "damaged": 4, "connection": 4}
        server.faults = always("error", "shard-00001.tar")
        with pytest.raises(BrokenShard, match=r"shard-00001\.tar cannot be fetched: HTTP 500; tries: 5"):
            files.members(files.manifest.shards[1], STRUCTURE)


def test_the_structure_comes_with_the_shard_where_there_are_no_ranges_and_from_the_cache_where_it_is(tmp_path):
    build(tmp_path / "data")
    with web_server(tmp_path / "data", ranges=False) as server:
        files = RemoteFiles(server.url, options(tmp_path))
        entry = files.manifest.shards[0]
        first = files.members(entry, STRUCTURE)
        requests = server.requests.total()
        assert files.members(entry, STRUCTURE) == first
        assert server.requests.total() == requests
    assert [path.name for path in cached(tmp_path)] == [entry.name]


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("error", r"HTTP 500; tries: 3"),
        ("stall", r"timed out after 0\.1 s; tries: 3"),
        ("truncate", r"2048 of 4096 bytes; tries: 3"),
        ("reset", r"the connection broke \(RemoteDisconnected.*; tries: 3"),
        ("flip", r"is damaged: .*, after 3 downloads"),
    ],
)
def test_a_shard_that_stays_broken_is_named_with_its_address_and_the_cause(tmp_path, kind, cause):
    local = build(tmp_path / "data")
    name = "shard-00002.tar"
    with web_server(tmp_path / "data", faults=always(kind, name), stall_s=0.3) as server:
        remote = open_shards(server.url, options(tmp_path, timeout_s=0.1 if kind == "stall" else 20.0, retries=2))
        begin = int(sum(entry.tokens for entry in local.manifest.shards[:2]))
        with pytest.raises(BrokenShard, match=cause) as caught:
            remote.tokens(begin, begin + 1)
        assert caught.value.shard == name
        assert f"{server.url}/{name}" in str(caught.value)
        np.testing.assert_array_equal(remote.tokens(0, begin), local.tokens(0, begin))
    assert not cached(tmp_path, name)


def test_a_missing_shard_and_one_of_another_size_are_named(tmp_path):
    local = build(tmp_path / "data")
    (tmp_path / "data" / "shard-00000.tar").unlink()
    (tmp_path / "data" / "shard-00001.tar").write_bytes(b"short")
    with web_server(tmp_path / "data") as server:
        files = RemoteFiles(server.url, options(tmp_path, retries=2))
        missing, short = files.manifest.shards[:2]
        with pytest.raises(BrokenShard, match="HTTP 404, it is missing; tries: 1;"):
            files.local_path(missing)
        with pytest.raises(BrokenShard, match=rf"it has 5 bytes, {local.manifest.shards[1].bytes} expected; tries: 3;"):
            files.local_path(short)


def test_an_unreachable_server_and_a_folder_without_shards_are_told_apart(tmp_path):
    (tmp_path / "empty").mkdir()
    with web_server(tmp_path / "empty") as server, pytest.raises(DataError, match=r"json .* HTTP 404.* is it a folder"):
        RemoteFiles(server.url, options(tmp_path))
    with pytest.raises(DataError, match=r"no connection .*tries: 2; check the server"):
        RemoteFiles(server.url, options(tmp_path, retries=1))


def test_a_manifest_that_arrives_damaged_is_asked_for_again(tmp_path):
    local = build(tmp_path / "data")
    kinds = ["flip", "truncate", "error", None]
    with web_server(tmp_path / "data", faults=lambda name, begin, nth: kinds[nth]) as server:
        files = RemoteFiles(server.url, options(tmp_path, retries=3))
    assert files.manifest == local.manifest
    damaged = web_server(tmp_path / "data", faults=always("flip", "manifest.json"))
    with damaged as server, pytest.raises(DataError, match=r"manifest\.json is damaged"):
        RemoteFiles(server.url, options(tmp_path, retries=1))


def test_the_web_server_of_python_which_knows_no_ranges_will_do(tmp_path):
    local = build(tmp_path / "data")
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *args: handler(*args, directory=str(tmp_path / "data"))
    )
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    remote = open_shards(f"http://127.0.0.1:{server.server_address[1]}/", options(tmp_path))
    np.testing.assert_array_equal(stream(remote), stream(local))
    server.shutdown()
    server.server_close()


def test_faults_of_a_server_without_ranges_do_not_change_a_bit_either(tmp_path):
    local = build(tmp_path / "data")
    plan = [*FAULTS, None]
    with web_server(tmp_path / "data", ranges=False, faults=lambda name, begin, nth: plan[min(nth, 4)]) as server:
        remote = open_shards(server.url, options(tmp_path, timeout_s=0.4, retries=8))
        np.testing.assert_array_equal(stream(remote), stream(local))
    assert server.faults_made["flip"] == 5


def test_a_fetch_that_was_killed_goes_on_where_it_was(tmp_path):
    build(tmp_path / "data", shards=1)
    with web_server(tmp_path / "data", latency_s=0.05) as server:
        files = RemoteFiles(server.url, options(tmp_path, threads=1))
        entry = files.manifest.shards[0]
        child = FORK.Process(target=files.local_path, args=(entry,))
        child.start()
        while server.requests[entry.name, 3 * PART] == 0:
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        (journal,) = cached(tmp_path, "*.parts")
        there = journal.read_bytes()[8:].count(1)
        assert 3 <= there < entry.bytes // PART
        assert not cached(tmp_path)
        server.requests.clear()
        path = files.local_path(entry)
        assert path.read_bytes() == (tmp_path / "data" / entry.name).read_bytes()
        assert server.requests.total() == -(-entry.bytes // PART) - there
        assert min(begin for _, begin in server.requests) == there * PART
    assert not cached(tmp_path, "*.part*")


def test_parts_of_another_size_are_not_taken_for_ours(tmp_path):
    build(tmp_path / "data", shards=1)
    with web_server(tmp_path / "data", faults=lambda name, begin, nth: "error" if begin > 3 * PART else None) as server:
        files = RemoteFiles(server.url, options(tmp_path, threads=1, retries=0))
        with pytest.raises(BrokenShard):
            files.local_path(files.manifest.shards[0])
        server.faults = lambda *_: None
        files = RemoteFiles(server.url, options(tmp_path, part_bytes=5000))
        path = files.local_path(files.manifest.shards[0])
    assert path.read_bytes() == (tmp_path / "data" / path.name).read_bytes()
    assert files.statistics().refetches == 0


def test_processes_that_want_one_shard_fetch_it_once(tmp_path):
    build(tmp_path / "data", shards=1)
    with web_server(tmp_path / "data", latency_s=0.02) as server:
        files = RemoteFiles(server.url, options(tmp_path))
        entry = files.manifest.shards[0]
        children = [FORK.Process(target=files.local_path, args=(entry,)) for _ in range(4)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        assert [child.exitcode for child in children] == [0] * 4
        assert set(server.requests.values()) == {1}
    # What forked processes did is counted with what this one did.
    statistics = files.statistics()
    assert (statistics.fetched_shards, statistics.fetched_bytes) == (1, entry.bytes)
    assert statistics.wait_s > 0


def test_a_process_that_waits_takes_over_when_the_fetching_one_is_killed(tmp_path):
    build(tmp_path / "data", shards=1)
    with web_server(tmp_path / "data", latency_s=0.05) as server:
        files = RemoteFiles(server.url, options(tmp_path, threads=1))
        entry = files.manifest.shards[0]
        first, second = (FORK.Process(target=files.local_path, args=(entry,)) for _ in range(2))
        first.start()
        while not server.requests[entry.name, PART]:
            time.sleep(0.01)
        second.start()
        os.kill(first.pid, signal.SIGKILL)
        second.join(20)
        assert second.exitcode == 0
    assert files.local_path(entry).stat().st_size == entry.bytes


def fetch_with_a_child(files, pids):
    """Fetch in a thread, and fork in the middle a process that outlives this one."""
    entry = files.manifest.shards[0]
    threading.Thread(target=files.local_path, args=(entry,), daemon=True).start()
    while not list(files.path_of(entry).parent.glob("*.partial")):
        time.sleep(0.005)
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    pids.put(child)
    time.sleep(60)


def test_a_child_of_a_killed_process_does_not_keep_its_locks(tmp_path):
    build(tmp_path / "data", shards=1)
    with web_server(tmp_path / "data", latency_s=0.1) as server:
        files = RemoteFiles(server.url, options(tmp_path, threads=1))
        pids = FORK.SimpleQueue()
        fetching = FORK.Process(target=fetch_with_a_child, args=(files, pids))
        fetching.start()
        child = pids.get()
        os.kill(fetching.pid, signal.SIGKILL)
        fetching.join()
        os.kill(child, 0)
        server.latency_s = 0.0
        files.local_path(files.manifest.shards[0])
        os.kill(child, signal.SIGKILL)


def test_half_a_shard_of_a_dead_process_gives_way_and_a_lower_limit_is_kept(tmp_path):
    local = build(tmp_path / "data", shards=6, tokens=4000)
    size = local.manifest.shards[0].bytes
    with web_server(tmp_path / "data") as server:
        files = RemoteFiles(server.url, options(tmp_path, limit_bytes=4 * size, retries=0))
        for entry in files.manifest.shards[:3]:
            files.local_path(entry)
        server.faults = lambda name, begin, nth: "error" if begin > PART else None
        with pytest.raises(BrokenShard):
            files.local_path(files.manifest.shards[3])
        server.faults = lambda *_: None
        assert (len(cached(tmp_path)), len(cached(tmp_path, "*.partial"))) == (3, 1)
        files = RemoteFiles(server.url, options(tmp_path, limit_bytes=2 * size))
        files.local_path(files.manifest.shards[4])
        files.local_path(files.manifest.shards[5])
        assert [path.name for path in cached(tmp_path)] == ["shard-00004.tar", "shard-00005.tar"]
        assert not cached(tmp_path, "*.part*")


def compare_all(remote, local, seed):
    ends = np.cumsum([0, *(entry.tokens for entry in local.manifest.shards)]).tolist()
    for number in np.random.default_rng(seed).permutation(len(ends) - 1).tolist():
        window = remote.tokens(ends[number], ends[number + 1])
        np.testing.assert_array_equal(window, local.tokens(ends[number], ends[number + 1]))


def sizes_until(tmp_path, children):
    """The largest sum of all files of shards that was ever seen, while the children live."""
    largest = 0
    while any(child.is_alive() for child in children):
        sizes = 0
        for path in (tmp_path / "cache").glob("*/*.tar*"):
            with suppress(FileNotFoundError):
                sizes += path.stat().st_size if path.suffix in (".tar", ".partial") else 0
        largest = max(largest, sizes)
        time.sleep(0.002)
    return largest


def test_four_processes_share_a_cache_of_a_quarter_of_the_shards(tmp_path):
    local = build(tmp_path / "data", shards=12, tokens=4000)
    size = local.manifest.shards[0].bytes
    with web_server(tmp_path / "data") as server:
        remote = open_shards(server.url, options(tmp_path, limit_bytes=3 * size))
        children = [FORK.Process(target=compare_all, args=(remote, local, seed)) for seed in range(4)]
        for child in children:
            child.start()
        largest = sizes_until(tmp_path, children)
        assert [child.exitcode for child in children] == [0] * 4
        fetched = sum(server.fetches(entry.name) for entry in local.manifest.shards)
    statistics = remote.files.statistics()
    assert 2 * size <= largest <= 3 * size
    assert fetched == statistics.fetched_shards <= 48
    # Nothing is fetched twice unless it was evicted in between.
    assert fetched == statistics.evictions + len(cached(tmp_path))


def test_a_cache_smaller_than_a_shard_is_refused_with_the_size_that_works(tmp_path):
    local = build(tmp_path / "data")
    largest = max(entry.bytes for entry in local.manifest.shards)
    with web_server(tmp_path / "data") as server:
        with pytest.raises(DataError, match=rf"raise the limit to at least {largest}"):
            open_shards(server.url, options(tmp_path, limit_bytes=largest - 1))
        remote = open_shards(server.url, options(tmp_path, limit_bytes=largest))
        compare_all(remote, local, 0)
    assert len(cached(tmp_path)) == 1


def test_a_file_that_is_evicted_while_it_is_mapped_stays_readable(tmp_path):
    local = build(tmp_path / "data", shards=2)
    with web_server(tmp_path / "data") as server:
        remote = open_shards(server.url, options(tmp_path, limit_bytes=local.manifest.shards[0].bytes))
        half = local.manifest.shards[0].tokens
        for _ in range(2):
            np.testing.assert_array_equal(remote.tokens(0, half), local.tokens(0, half))
            np.testing.assert_array_equal(remote.tokens(half, 2 * half), local.tokens(half, 2 * half))


def test_data_sets_of_equal_names_do_not_mix(tmp_path):
    one, two = build(tmp_path / "one", seed=1), build(tmp_path / "two", seed=2)
    with web_server(tmp_path) as server:
        for _ in range(2):
            for name, local in (("one", one), ("two", two)):
                np.testing.assert_array_equal(
                    stream(open_shards(f"{server.url}/{name}", options(tmp_path))), stream(local)
                )
    assert len(cached(tmp_path)) == 8


def test_copies_of_a_set_in_two_places_are_fetched_once(tmp_path):
    build(tmp_path / "one")
    build(tmp_path / "two")
    with web_server(tmp_path) as server:
        compare_all(open_shards(f"{server.url}/one", options(tmp_path)), ShardSet.open(tmp_path / "one"), 0)
        remote = open_shards(f"{server.url}/two", options(tmp_path))
        compare_all(remote, ShardSet.open(tmp_path / "two"), 0)
    assert remote.files.statistics().fetched_bytes == 0


def test_a_pickled_set_reads_on_without_asking_for_the_manifest(tmp_path):
    local = build(tmp_path / "data")
    with web_server(tmp_path / "data") as server:
        data = pickle.dumps(open_shards(server.url, options(tmp_path)))
        compare_all(pickle.loads(data), local, 0)
        assert server.requests["manifest.json", 0] == 1


def test_a_signature_in_the_url_is_sent_and_never_printed(tmp_path):
    build(tmp_path / "data")
    (tmp_path / "data" / "shard-00000.tar").unlink()
    paths = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            paths.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: Handler(*args, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    files = RemoteFiles(f"http://127.0.0.1:{server.server_address[1]}/data?sig=secret", options(tmp_path))
    with pytest.raises(BrokenShard) as caught:
        files.local_path(files.manifest.shards[0])
    server.shutdown()
    server.server_close()
    assert set(paths) == {"/data/manifest.json?sig=secret", "/data/shard-00000.tar?sig=secret"}
    assert "secret" not in str(caught.value) + files.location


def test_a_folder_and_a_file_url_are_read_where_they_lie(tmp_path):
    local = build(tmp_path / "data")
    for place in (tmp_path / "data", str(tmp_path / "data"), f"file://{tmp_path / 'data'}"):
        np.testing.assert_array_equal(stream(open_shards(place, options(tmp_path))), stream(local))
    assert not (tmp_path / "cache").exists()
    assert [is_remote(place) for place in ("runs/x", "/x", "file:///x", "s3://x", "https://x")] == [False] * 3 + [
        True
    ] * 2


def test_a_cache_that_cannot_be_written_is_a_mistake_of_the_user(tmp_path):
    build(tmp_path / "data")
    (tmp_path / "cache").write_text("a file")
    with web_server(tmp_path / "data") as server, pytest.raises(DataError, match=r"cannot use the cache .*cache: "):
        open_shards(server.url, options(tmp_path))


def fetch_with_small_files(files, messages):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        files.local_path(files.manifest.shards[0])
    except DataError as error:
        messages.put(str(error))


def test_a_disk_that_takes_no_more_is_told_from_a_broken_shard(tmp_path):
    build(tmp_path / "data")
    with web_server(tmp_path / "data") as server:
        files = RemoteFiles(server.url, options(tmp_path))
        messages = FORK.SimpleQueue()
        child = FORK.Process(target=fetch_with_small_files, args=(files, messages))
        child.start()
        assert messages.get().startswith(f"cannot use the cache {tmp_path / 'cache'}: File too large; free space")
        child.join()
        path = files.local_path(files.manifest.shards[0])
    assert path.read_bytes() == (tmp_path / "data" / path.name).read_bytes()


@pytest.mark.parametrize("changed", [{"limit_bytes": 0}, {"threads": 0}, {"retries": -1}, {"timeout_s": 0.0}])
def test_options_that_cannot_work_are_refused(tmp_path, changed):
    with pytest.raises(DataError, match=next(iter(changed))):
        options(tmp_path, **changed)


def test_s3_is_read_also_by_a_process_forked_from_one_that_reads_it(tmp_path, monkeypatch):
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("s3fs")
    local = build(tmp_path / "data")
    with s3_server(monkeypatch) as endpoint:
        client = boto3.client("s3", endpoint_url=endpoint)
        for path in (tmp_path / "data").iterdir():
            client.put_object(Bucket="data", Key=f"corpus/train/{path.name}", Body=path.read_bytes())
        remote = open_shards("s3://data/corpus/train", options(tmp_path))
        half = local.num_tokens // 2
        np.testing.assert_array_equal(remote.tokens(0, half), local.tokens(0, half))
        child = FORK.Process(target=compare_all, args=(remote, local, 0))
        child.start()
        child.join(30)
        assert child.exitcode == 0
        client.delete_object(Bucket="data", Key="corpus/train/shard-00003.tar")
        cached(tmp_path, "shard-00003.tar")[0].unlink()
        with pytest.raises(
            BrokenShard, match=r"s3://data/corpus/train/shard-00003\.tar cannot be fetched: it is missing"
        ):
            remote.files.local_path(remote.manifest.shards[3])
    assert remote.files.statistics().fetched_shards == 4


def test_other_urls_are_read_by_fsspec_or_refused(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    local = build(tmp_path / "data")
    memory = fsspec.filesystem("memory")
    for path in (tmp_path / "data").iterdir():
        memory.pipe(f"/store-test/{path.name}", path.read_bytes())
    np.testing.assert_array_equal(stream(open_shards("memory://store-test", options(tmp_path))), stream(local))
    with pytest.raises(DataError, match=r"cannot open nowhere://x: .*nowhere"):
        open_shards("nowhere://x", options(tmp_path))


def test_statistics_can_be_written_to_a_log(tmp_path):
    build(tmp_path / "data")
    with web_server(tmp_path / "data", faults=lambda name, begin, nth: "error" if nth == 0 else None) as server:
        remote = open_shards(server.url, options(tmp_path))
        stream(remote)
    logged = json.loads(json.dumps(remote.files.statistics().__dict__))
    assert logged["retries"] == {"server_error": len(server.requests)}
