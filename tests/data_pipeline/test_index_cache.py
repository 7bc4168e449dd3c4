from __future__ import annotations

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.samples.index_cache import cached_columns
from data_pipeline.samples.masking import MaskingPolicy
from data_pipeline.samples.objectives import ObjectiveOptions, build_samples
from data_pipeline.samples.pairs import PairSamples
from tests.data_pipeline.shard_files import counting_prose, random_prose

ABOUT = {"shards": "ab" * 32, "kind": "test", "room": 5, "rules": 1}
OPTIONS = [
    ObjectiveOptions("mlm"),
    ObjectiveOptions("mlm_nsp"),
    ObjectiveOptions("mlm_sop"),
    ObjectiveOptions("causal", packing="best_fit"),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return counting_prose(tmp_path_factory.mktemp("prose"), [random_prose(12, seed=seed) for seed in range(2)])


def parts():
    yield {"begins": np.arange(5), "lengths": np.arange(5, dtype=np.int32), "empty": np.empty(0, dtype=np.uint16)}
    yield {"begins": np.arange(5, 12), "lengths": np.ones(7, dtype=np.int32), "empty": np.empty(0, dtype=np.uint16)}


def never():
    raise AssertionError("built again")
    yield {}


def assert_columns(found):
    np.testing.assert_array_equal(found["begins"], np.arange(12))
    np.testing.assert_array_equal(found["lengths"], [0, 1, 2, 3, 4, 1, 1, 1, 1, 1, 1, 1])
    assert [column.dtype for column in found.values()] == [np.int64, np.int32, np.uint16]
    assert found["empty"].size == 0


def only_file(folder):
    (path,) = folder.iterdir()
    return path


def is_mapped(array):
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            return True
        array = array.base
    return False


def test_columns_are_built_once_and_mapped_afterwards(tmp_path):
    assert_columns(cached_columns(tmp_path, ABOUT, parts))
    found = cached_columns(tmp_path, ABOUT, never)
    assert_columns(found)
    assert all(is_mapped(found[name]) and not found[name].flags.writeable for name in ("begins", "lengths"))
    assert all(found[name].flags.aligned for name in found)


def test_without_a_folder_columns_are_built_in_memory():
    assert_columns(cached_columns(None, ABOUT, parts))


def test_the_file_is_an_array_that_plain_numpy_reads(tmp_path):
    cached_columns(tmp_path, ABOUT, parts)
    plain = np.load(only_file(tmp_path), mmap_mode="r", allow_pickle=False)
    assert plain.dtype == np.uint8
    assert b'"name": "begins"' in plain.tobytes()


@pytest.mark.parametrize("change", [{"shards": "cd" * 32}, {"kind": "other"}, {"room": 6}, {"rules": 2}])
def test_anything_that_an_index_follows_from_gives_it_another_file(tmp_path, change):
    cached_columns(tmp_path, ABOUT, parts)
    with pytest.raises(AssertionError, match="built again"):
        cached_columns(tmp_path, ABOUT | change, never)


def test_a_file_under_another_name_is_not_believed(tmp_path):
    cached_columns(tmp_path, ABOUT, parts)
    path = only_file(tmp_path)
    other = tmp_path / "other"
    cached_columns(other, ABOUT | {"room": 6}, parts)
    path.rename(only_file(other))
    with pytest.raises(AssertionError, match="built again"):
        cached_columns(other, ABOUT | {"room": 6}, never)


def test_a_damaged_bit_anywhere_is_noticed_and_mended(tmp_path):
    cached_columns(tmp_path, ABOUT, parts)
    path = only_file(tmp_path)
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    # The first 8 bytes name the format for other programs; nothing is read from them.
    for place in [8, 9, *rng.integers(128, len(good), 60).tolist()]:
        data = bytearray(good)
        data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        assert_columns(cached_columns(tmp_path, ABOUT, parts))
        assert path.read_bytes() == good


@pytest.mark.parametrize("size", [0, 5, 100, 300, -1])
def test_a_file_cut_short_is_noticed_and_mended(tmp_path, size):
    cached_columns(tmp_path, ABOUT, parts)
    path = only_file(tmp_path)
    good = path.read_bytes()
    path.write_bytes(good[:size])
    assert_columns(cached_columns(tmp_path, ABOUT, parts))
    assert path.read_bytes() == good


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("a file where the folder should be")
    assert_columns(cached_columns(blocked, ABOUT, parts))
    assert blocked.read_text() == "a file where the folder should be"


def test_errors_of_the_data_are_passed_on_and_leave_no_file(tmp_path):
    def broken():
        yield from parts()
        raise DataError("shard 3 is missing")

    with pytest.raises(DataError, match="shard 3"):
        cached_columns(tmp_path, ABOUT, broken)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: f"{options.kind} {options.packing}")
def test_samples_are_the_same_with_a_cache_without_and_from_a_warm_one(tmp_path, shards, options):
    cold, warm = (build_samples(shards, options, 48, 7, "train", False, cache=tmp_path) for _ in range(2))
    plain = build_samples(shards, options, 48, 7, "train", False)
    indices, epochs = np.arange(len(plain)), np.zeros(len(plain), dtype=int)
    assert len(cold) == len(warm) == len(plain)
    expected = plain.batch(indices, epochs)
    for samples in (cold, warm):
        found = samples.batch(indices, epochs)
        np.testing.assert_array_equal(found.inputs, expected.inputs)
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_array_equal(found.lengths, expected.lengths)


def test_an_index_in_the_cache_is_used_without_a_look_at_the_shards(tmp_path, shards):
    for options in OPTIONS:
        build_samples(shards, options, 48, 7, "train", False, cache=tmp_path)
    # Both kinds of pairs have chunks of the same rules and room.
    assert len(list(tmp_path.iterdir())) == 3

    def refuse():
        raise AssertionError("structures were read")

    shards.structures = refuse
    try:
        for options in OPTIONS:
            assert len(build_samples(shards, options, 48, 7, "train", False, cache=tmp_path))
        with pytest.raises(AssertionError, match="structures"):
            build_samples(shards, OPTIONS[0], 32, 7, "train", False, cache=tmp_path)
    finally:
        del shards.structures


def test_the_index_of_pairs_stays_on_disk_and_takes_16_bytes_a_pair(tmp_path, shards):
    samples = PairSamples(
        shards, 48, MaskingPolicy(), kind="sentence_order", seed=7, source="train", copies=0, cache=tmp_path
    )
    chunks = samples._chunks
    columns = (chunks.begins, chunks.lengths, chunks.documents)
    assert all(is_mapped(column) for column in columns)
    assert sum(column.nbytes for column in columns) == 16 * len(samples)
    assert only_file(tmp_path).stat().st_size < 16 * len(samples) + 1024


def build_when_told(folder, start, results):
    start.wait()
    found = cached_columns(folder, ABOUT, parts)
    results.put((os.getpid(), found["begins"].tolist(), found["lengths"].tolist()))


def test_processes_that_build_at_once_all_find_the_whole_index(tmp_path):
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.SimpleQueue()
    workers = [context.Process(target=build_when_told, args=(tmp_path, start, results)) for _ in range(8)]
    for worker in workers:
        worker.start()
    start.set()
    found = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    assert len({pid for pid, _, _ in found}) == 8
    assert all(begins == list(range(12)) and sum(lengths) == 17 for _, begins, lengths in found)
    assert_columns(cached_columns(tmp_path, ABOUT, never))
    assert only_file(tmp_path).suffix == ".npy"


def build_and_hang(folder, marker):
    """Stop where all is written and nothing is published."""

    def hang(descriptor):
        marker.touch()
        time.sleep(60)

    os.fsync = hang
    cached_columns(folder, ABOUT, parts)


def test_a_killed_builder_leaves_nothing_that_is_taken_for_an_index(tmp_path):
    folder, marker = tmp_path / "cache", tmp_path / "written"
    worker = multiprocessing.get_context("fork").Process(target=build_and_hang, args=(folder, marker))
    worker.start()
    while not marker.exists():
        time.sleep(0.01)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert ".npy.tmp-" in only_file(folder).name
    assert_columns(cached_columns(folder, ABOUT, parts))
    assert_columns(cached_columns(folder, ABOUT, never))
    assert only_file(folder).suffix == ".npy"  # what the dead process left was swept up
