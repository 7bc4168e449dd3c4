from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.order import Permutation, derive_key
from data_pipeline.shards import BrokenShard, ShardSet
from data_pipeline.store import CacheOptions, Prefetcher, RemoteFiles
from data_pipeline.store.counters import Counters
from data_pipeline.store.folder import NOW, CacheFolder
from data_pipeline.store.horizon import Horizon
from tests.data_pipeline.servers import always, web_server
from tests.data_pipeline.shard_files import documents_of, write_shards

FORK = multiprocessing.get_context("fork")


def build(directory, shards):
    return write_shards(directory, [documents_of([50] * 4, 500, seed) for seed in range(shards)], 500)


@pytest.fixture
def served(tmp_path):
    """A web server of twelve shards of equal size, and a way to open them through a cache of so many."""
    local = build(tmp_path / "data", 12)
    (size,) = {entry.bytes for entry in local.manifest.shards}

    def opened(shards, **changed):
        values = {"timeout_s": 20.0, "backoff_s": 0.01, "retries": 1} | changed
        return RemoteFiles(server.url, CacheOptions(tmp_path / "cache", shards * size, **values))

    with web_server(tmp_path / "data") as server:
        server.opened = opened
        server.local = local
        yield server


def numbers_there(files):
    return {number for number, entry in enumerate(files.manifest.shards) if files.is_there(entry)}


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def requested(server):
    """Numbers of the shards in the order in which they were asked for."""
    return [int(name[6:11]) for name, _ in server.requests if name.endswith(".tar")]


def test_shards_arrive_in_the_order_of_need_before_they_are_read(served):
    files = served.opened(12)
    order = [7, 3, 11, 0, 5]
    with Prefetcher(files, ((step, [shard]) for step, shard in enumerate(order))) as prefetcher:
        wait_for(lambda: numbers_there(files) == set(order))
        assert requested(served) == order
        for step, shard in enumerate(order):
            prefetcher.advance(step)
            files.local_path(files.manifest.shards[shard])
    statistics = files.statistics()
    assert (statistics.wait_s, statistics.fetched_shards, statistics.evictions) == (0, 5, 0)


@pytest.mark.parametrize(("limits", "ahead"), [({}, 4), ({"ahead_steps": 2}, 3), ({"ahead_bytes": 25_000}, 2)])
def test_it_runs_ahead_no_further_than_the_cache_and_the_caller_allow(served, limits, ahead):
    files = served.opened(4)
    assert files.manifest.shards[0].bytes == 10_240
    with Prefetcher(files, ((step, [step % 12]) for step in itertools.count()), **limits) as prefetcher:
        for step in (0, 1, 5, 11, 12):
            prefetcher.advance(step)
            expected = {(step + behind) % 12 for behind in range(ahead)}
            wait_for(lambda expected=expected: expected <= numbers_there(files))
            time.sleep(0.05)
            assert len(numbers_there(files)) <= 4
            assert expected <= numbers_there(files)


def test_what_another_process_needs_sooner_does_not_give_way(served):
    one, two = served.opened(3), served.opened(3)
    with Prefetcher(one, [(0, [0]), (1, [1]), (2, [2])]):
        wait_for(lambda: numbers_there(one) == {0, 1, 2})
        with Prefetcher(two, [(100, [4]), (105, [5])]) as later:
            later.advance(99)
            # It is one step from shard 4, sooner than the other process is from shard 2, but not from 0 and 1.
            wait_for(lambda: numbers_there(one) == {0, 1, 4})
            time.sleep(0.5)
            assert numbers_there(one) == {0, 1, 4}


def needs_forever(files, ready):
    with Prefetcher(files, [(0, [0]), (1, [1])]):
        wait_for(lambda: numbers_there(files) == {0, 1})
        ready.set()
        time.sleep(60)


def test_needs_of_a_killed_process_hold_nothing_back(served, tmp_path):
    files = served.opened(2)
    ready = FORK.Event()
    child = FORK.Process(target=needs_forever, args=(files, ready))
    child.start()
    assert ready.wait(20)
    with Prefetcher(files, [(5, [8])]):
        time.sleep(0.5)
        assert numbers_there(files) == {0, 1}
        assert len(list((tmp_path / "cache" / "needs").iterdir())) == 2
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        wait_for(lambda: 8 in numbers_there(files))
        assert len(list((tmp_path / "cache" / "needs").iterdir())) == 1
    assert not list((tmp_path / "cache" / "needs").iterdir())


def test_a_reader_that_waits_gets_room_even_if_all_of_it_is_needed_soon(served):
    files = served.opened(2)
    with Prefetcher(files, [(0, [0]), (1, [1])]):
        wait_for(lambda: numbers_there(files) == {0, 1})
        files.local_path(files.manifest.shards[9])
        assert numbers_there(files) in ({0, 9}, {1, 9})


def test_a_failure_ahead_is_kept_and_raised_to_the_reader_who_tries_again_first(served):
    served.faults = always("error", "shard-00001.tar")
    files = served.opened(12)
    with Prefetcher(files, [(0, [0, 1, 2])]) as prefetcher:
        wait_for(lambda: numbers_there(files) == {0, 2})
        assert set(prefetcher.failures) == {1}
        with pytest.raises(BrokenShard, match=r"shard-00001\.tar cannot be fetched: HTTP 500; tries: 2"):
            files.local_path(files.manifest.shards[1])
        served.faults = lambda *_: None
        files.local_path(files.manifest.shards[1])
        prefetcher.advance(1)


def test_an_error_in_the_future_reaches_the_caller(served):
    def future():
        yield 0, [0]
        raise ArithmeticError("no more steps")

    broken = Prefetcher(served.opened(12), future())
    with broken as prefetcher, pytest.raises(ArithmeticError, match="no more steps"):
        wait_for(lambda: prefetcher.advance(1))


def test_closing_does_not_wait_for_a_shard_and_keeps_what_has_arrived(served, tmp_path):
    served.latency_s = 0.2
    files = served.opened(12, part_bytes=512, threads=1)
    with Prefetcher(files, [(0, [0])]):
        wait_for(lambda: served.requests["shard-00000.tar", 1024])
    assert served.requests.total() <= 6
    assert len(list((tmp_path / "cache").glob("*/*.partial"))) == 1
    served.latency_s = 0.0
    before = served.requests.total()
    files.local_path(files.manifest.shards[0])
    assert served.requests.total() - before <= 18


def test_steps_that_are_long_past_are_not_fetched(served):
    files = served.opened(12)
    with Prefetcher(files, ((step, [step % 3 if step < 1000 else 9]) for step in range(2000))) as prefetcher:
        prefetcher.advance(1500)
        wait_for(lambda: 9 in numbers_there(files))
        wait_for(lambda: files.statistics().wait_s == 0)
    assert requested(served)[-1] == 9


def read_in_order(shards, order, delay):
    ends = np.cumsum([0, *(entry.tokens for entry in shards.manifest.shards)]).tolist()
    for number in order:
        tokens = shards.tokens(ends[number], ends[number + 1])
        assert tokens.tolist() == EXPECTED[number]
        time.sleep(delay)


EXPECTED: dict[int, list[int]] = {}


def test_loader_processes_forked_while_shards_come_ahead_find_them(served, tmp_path):
    remote = ShardSet.open(served.opened(4))
    for number, entry in enumerate(served.local.manifest.shards):
        EXPECTED[number] = served.local.tokens(number * entry.tokens, (number + 1) * entry.tokens).tolist()
    served.latency_s = 0.01
    order = np.random.default_rng(0).permutation(12).tolist()
    with Prefetcher(remote.files, ((step, [shard]) for step, shard in enumerate(order))) as prefetcher:
        wait_for(lambda: numbers_there(remote.files))
        children = [FORK.Process(target=read_in_order, args=(remote, order, 0.05)) for _ in range(2)]
        for child in children:
            child.start()
        step = 0
        while any(child.is_alive() for child in children):
            prefetcher.advance(step)
            step += len(set(order[: step + 2]) & numbers_there(remote.files)) > 1
            time.sleep(0.05)
        assert [child.exitcode for child in children] == [0, 0]
    statistics = remote.files.statistics()
    assert statistics.fetched_shards == statistics.evictions + len(numbers_there(remote.files))
    assert statistics.fetched_bytes == statistics.fetched_shards * 10_240


@given(
    steps=st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=30),
    moves=st.lists(st.tuples(st.integers(0, 8), st.integers(1, 9)), max_size=10),
)
def test_the_horizon_knows_the_next_use_of_every_shard(steps, moves):
    horizon = Horizon(enumerate(steps))
    step = 0
    for move, uses in moves:
        step += move
        horizon.advance(step)
        horizon.look_ahead(uses)
        known = [(at, set(shards)) for at, shards in enumerate(steps) if at >= step]
        found = dict(horizon.next_uses())
        assert list(found.values()) == sorted(found.values())
        for shard, use in found.items():
            assert use == next(at for at, shards in known if shard in shards)
        sizes = itertools.accumulate(max(len(shards), 1) for _, shards in known)
        if horizon.is_complete:
            assert set(found) == set().union(*(shards for _, shards in known))
            assert horizon.size == max(sizes, default=0)
        else:
            assert horizon.size in set(sizes)


def block_order(shards, block, epochs, steps_per_block, per_step, seed=0):
    """The shards of each step when blocks of shards are permuted, and samples within a block are drawn at random."""
    rng = np.random.default_rng(seed)
    steps = []
    for epoch in range(epochs):
        order = Permutation(shards, derive_key(seed, "blocks", epoch))(np.arange(shards))
        for first in range(0, shards, block):
            members = order[first : first + block]
            steps += [sorted(set(rng.choice(members, per_step).tolist())) for _ in range(steps_per_block)]
    return steps


def fewest_misses(steps, capacity):
    """Misses of the best possible cache (Belady 1966), in memory, one read after the other."""
    reads = [shard for shards in steps for shard in shards]
    there, count = set(), 0
    for at, shard in enumerate(reads):
        if shard in there:
            continue
        count += 1
        if len(there) == capacity:
            rest = reads[at:]
            there.remove(max(there, key=lambda kept: rest.index(kept) if kept in rest else len(reads)))
        there.add(shard)
    return count


def misses(directory, shards, capacity, steps, *, announced):
    """Shards fetched by a reader of real files; least recently used ones give way unless its future is known."""
    cache = CacheFolder(directory, capacity * 100)
    counters = Counters(directory)
    (directory / "set").mkdir()
    paths = [directory / "set" / f"shard-{number:05d}.tar" for number in range(shards)]
    names = [cache.name_of(path) for path in paths]
    horizon = Horizon(enumerate(steps))
    horizon.look_ahead(100_000)
    fetched = 0
    with cache.needs() as needs:
        for step, numbers in enumerate(steps):
            horizon.advance(step)
            if announced:
                cache.announce(needs, step, {names[number]: use for number, use in horizon.next_uses()})
            for number in numbers:
                if not cache.use(paths[number], 100):
                    cache.publish(cache.reserve(paths[number], 100, NOW, counters), paths[number])
                    fetched += 1
            assert len(list((directory / "set").glob("*.tar"))) <= capacity
    assert counters.statistics().evictions == fetched - capacity
    return fetched


@pytest.mark.parametrize("capacity", [4, 8, 12, 16])
def test_knowing_the_future_fetches_less_than_forgetting_what_is_longest_unused(tmp_path, monkeypatch, capacity):
    monkeypatch.setattr("data_pipeline.store.folder._GRACE_S", 0.0)
    steps = block_order(24, 4, epochs=4, steps_per_block=6, per_step=3)
    counts = {
        announced: misses(tmp_path / str(announced), 24, capacity, steps, announced=announced)
        for announced in (False, True)
    }
    best = fewest_misses(steps, capacity)
    # 317 reads; capacity 4: 93 against 99 of LRU, 8: 73 against 91, 12: 60 against 83, 16: 48 against 78.
    assert best == counts[True] < counts[False]
