from __future__ import annotations

import multiprocessing
import os
import random
import signal
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.loader import training_batches, validation_batches
from data_pipeline.order import SampleOrder
from data_pipeline.ramp import BatchSizes, slice_of
from data_pipeline.samples import IGNORE_INDEX, SampleBatch
from data_pipeline.samples.causal import CausalSamples
from data_pipeline.shards import BrokenShard, ShardSet
from data_pipeline.stream import SampleStream
from tests.data_pipeline.shard_files import counting_shards


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """23 samples of 4 tokens in three shards; sample k reads the tokens from 4k on."""
    return CausalSamples(counting_shards(tmp_path_factory.mktemp("train"), 31, 33, 31), 4)


ORDER = SampleOrder(23, 7, "train", "global")


RAMP = BatchSizes(13, start=3, increment=4, ramp_samples=40)


def load(samples, start, stop, *, sizes=None, batch=7, dp_rank=0, dp_size=1, workers=0, first_step=0):
    return list(
        training_batches(
            SampleStream.single(samples, ORDER),
            sizes=sizes or BatchSizes(batch),
            start_step=start,
            stop_step=stop,
            dp_rank=dp_rank,
            dp_size=dp_size,
            num_workers=workers,
            prefetch_steps=2,
            first_step=first_step,
        )
    )


@given(batch=st.integers(0, 50), size=st.integers(1, 60))
def test_slices_follow_each_other_cover_the_batch_and_are_even(batch, size):
    slices = [slice_of(batch, rank, size) for rank in range(size)]
    assert slices[0][0] == 0
    assert slices[-1][1] == batch
    assert all(left[1] == right[0] for left, right in pairwise(slices))
    lengths = [end - begin for begin, end in slices]
    assert max(lengths) - min(lengths) <= 1


def test_impossible_slices_are_refused():
    for batch, rank, size in [(4, 2, 2), (4, -1, 2), (4, 0, 0), (-1, 0, 1)]:
        with pytest.raises(ValueError):
            slice_of(batch, rank, size)


def test_a_step_reads_its_stretch_of_the_global_order(samples):
    batches = load(samples, 0, 10)
    assert [batch.step for batch in batches] == list(range(10))
    assert [batch.first_sample for batch in batches] == list(range(0, 70, 7))
    ids = np.concatenate([batch.sample_ids for batch in batches])
    np.testing.assert_array_equal(ids, ORDER.samples(0, 70))
    assert sorted(ids[:23].tolist()) == sorted(ids[23:46].tolist()) == list(range(23))
    for batch in batches:
        expected = torch.from_numpy(batch.sample_ids)[:, None] * 4 + torch.arange(4)
        assert batch.inputs.dtype == batch.labels.dtype == torch.int64
        assert torch.equal(batch.inputs, expected)
        assert torch.equal(batch.labels, expected + 1)


def test_growing_batches_read_the_same_order_without_a_gap(samples):
    batches = load(samples, 0, 10, sizes=RAMP)
    sizes = [len(batch.inputs) for batch in batches]
    assert sizes == [batch.global_batch_size for batch in batches] == [RAMP.size(step) for step in range(10)]
    assert (sizes[0], sizes[-1]) == (3, 13)
    ids = np.concatenate([batch.sample_ids for batch in batches])
    np.testing.assert_array_equal(ids, ORDER.samples(0, RAMP.first_sample(10)))


def test_a_phase_counts_its_steps_on_from_the_one_before(samples):
    batches = load(samples, 2, 5, first_step=100)
    assert [batch.step for batch in batches] == [102, 103, 104]
    assert [batch.first_sample for batch in batches] == [14, 21, 28]


class EpochSamples:
    """Samples of two positions that say by what index and epoch they were read."""

    sequence_length = 2

    def __len__(self):
        return 23

    def batch(self, indices, epochs):
        both = np.stack([indices, epochs], axis=1)
        segments = np.tile([0, 1], (len(indices), 1))
        return SampleBatch(both, both + 1, 1 + indices % 2, segments, indices % 2, None)


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_are_read_for_the_epoch_in_which_they_stand(workers):
    for batch in load(EpochSamples(), 0, 10, workers=workers):
        counters = torch.arange(batch.first_sample, batch.first_sample + 7)
        assert batch.inputs[:, 1].tolist() == (counters // 23).tolist()
        assert batch.inputs[:, 0].tolist() == batch.sample_ids.tolist()
        assert torch.equal(batch.lengths, 1 + batch.inputs[:, 0] % 2)
        assert torch.equal(batch.pair_labels, batch.inputs[:, 0] % 2)
        assert torch.equal(batch.segments, torch.tensor([[0, 1]] * 7))


def test_validation_reads_epoch_0():
    for batch in validation_batches(EpochSamples(), batch_size=7, dp_rank=0, dp_size=1):
        assert batch.inputs[:, 1].unique().tolist() == [0]


@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(1, 30),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    lengths=st.lists(st.integers(0, 4), min_size=4, max_size=4),
)
def test_restarts_on_any_number_of_ranks_stay_on_the_order_of_one(samples, batch, sizes, lengths):
    ids, inputs, step = [], [], 0
    for dp_size, steps in zip(sizes, lengths, strict=False):
        runs = [
            load(samples, step, step + steps, batch=batch, dp_rank=rank, dp_size=dp_size) for rank in range(dp_size)
        ]
        for slices in zip(*runs, strict=True):
            firsts = [piece.first_sample for piece in slices]
            assert firsts == [slices[0].step * batch + slice_of(batch, r, dp_size)[0] for r in range(dp_size)]
            ids.extend(piece.sample_ids for piece in slices)
            inputs.extend(piece.inputs for piece in slices)
        step += steps
    alone = load(samples, 0, step, batch=batch)
    if not alone:
        assert not ids
        return
    np.testing.assert_array_equal(np.concatenate(ids), np.concatenate([one.sample_ids for one in alone]))
    assert torch.equal(torch.cat(inputs), torch.cat([one.inputs for one in alone]))


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_give_identical_batches(samples, workers):
    here = load(samples, 3, 9, dp_rank=1, dp_size=2)
    there = load(samples, 3, 9, dp_rank=1, dp_size=2, workers=workers)
    assert len(here) == len(there) == 6
    for one, other in zip(here, there, strict=True):
        assert (one.step, one.first_sample) == (other.step, other.first_sample)
        np.testing.assert_array_equal(one.sample_ids, other.sample_ids)
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_more_ranks_than_samples_leave_some_without_rows(samples, workers):
    batches = [load(samples, 0, 2, batch=2, dp_rank=rank, dp_size=3, workers=workers) for rank in range(3)]
    assert [[len(batch.inputs) for batch in rank] for rank in batches] == [[0, 0], [1, 1], [1, 1]]
    empty = batches[0][1]
    assert empty.inputs.shape == empty.labels.shape == empty.segments.shape == (0, 4)
    assert empty.lengths.shape == empty.pair_labels.shape == (0,)
    columns = (empty.inputs, empty.labels, empty.lengths, empty.segments, empty.pair_labels)
    assert {column.dtype for column in columns} == {torch.int64}


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_global_random_streams_alone(samples, workers):
    def streams():
        _, words, position, *_ = np.random.get_state()
        return torch.get_rng_state().tolist(), words.tolist(), position, random.getstate()

    before = streams()
    load(samples, 0, 4, workers=workers)
    assert streams() == before


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_damaged_data_raise_the_same_plain_message_from_any_process(tmp_path, workers):
    shards = counting_shards(tmp_path, 31, 33, 31)
    path = tmp_path / "shard-00001.tar"
    data = bytearray(path.read_bytes())
    data[shards.manifest.shards[1].members["tokens.bin"].offset] ^= 1
    path.write_bytes(data)
    samples = CausalSamples(ShardSet.open(tmp_path), 4)
    with pytest.raises(DataError) as raised:
        load(samples, 0, 5, workers=workers)
    message = str(raised.value)
    assert isinstance(raised.value, BrokenShard)
    assert message.startswith(f"shard {path} is damaged: member 00001.tokens.bin, bytes ")
    assert "\n" not in message
    assert "worker" not in message


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_signals_that_stop_a_job_do_not_stop_its_loader_processes(samples, stop):
    stream = SampleStream.single(samples, ORDER)
    batches = training_batches(
        stream, sizes=BatchSizes(7), start_step=0, stop_step=40, dp_rank=0, dp_size=1, num_workers=2
    )
    first = [next(batches) for _ in range(3)]  # both workers have built a step
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, stop)
    ids = np.concatenate([batch.sample_ids for batch in [*first, *batches]])
    np.testing.assert_array_equal(ids, ORDER.samples(0, 280))
    assert multiprocessing.active_children() == []


def test_no_steps_give_no_batches(samples):
    assert load(samples, 5, 5) == []
    assert load(samples, 5, 5, workers=1) == []


def test_numbers_that_make_no_sense_are_refused_before_the_first_batch(samples):
    good = {"sizes": BatchSizes(4), "start_step": 0, "stop_step": 2, "dp_rank": 0, "dp_size": 1}
    for bad in [{"first_step": -1}, {"start_step": 3}, {"start_step": -1}, {"dp_rank": 1}]:
        with pytest.raises(ValueError):
            training_batches(SampleStream.single(samples, ORDER), **{**good, **bad})
    for bad in [{"batch_size": 0}, {"limit": 0}, {"dp_rank": 1}]:
        with pytest.raises(ValueError):
            validation_batches(samples, **{"batch_size": 4, "dp_rank": 0, "dp_size": 1, **bad})


@settings(deadline=None, max_examples=40)
@given(batch=st.integers(1, 30), dp_size=st.integers(1, 5), limit=st.none() | st.integers(1, 30))
def test_validation_reads_each_sample_once_in_order_with_equally_many_batches_on_all_ranks(
    samples, batch, dp_size, limit
):
    ranks = [
        list(validation_batches(samples, batch_size=batch, dp_rank=rank, dp_size=dp_size, limit=limit))
        for rank in range(dp_size)
    ]
    count = min(limit or 23, 23)
    assert {len(batches) for batches in ranks} == {-(-count // batch)}
    assert sum(piece.global_batch_size for piece in ranks[0]) == count
    pieces = [piece for slices in zip(*ranks, strict=True) for piece in slices]
    assert np.concatenate([piece.sample_ids for piece in pieces]).tolist() == list(range(count))
    for piece in pieces:
        assert torch.equal(piece.inputs[:, 0], torch.from_numpy(piece.sample_ids) * 4)
        assert piece.sample_ids.tolist() == list(range(piece.first_sample, piece.first_sample + len(piece.inputs)))


def test_validation_keeps_the_tail(tmp_path):
    samples = CausalSamples(counting_shards(tmp_path, 11), 4, keep_tail=True)
    batches = list(validation_batches(samples, batch_size=2, dp_rank=0, dp_size=1))
    assert [len(batch.inputs) for batch in batches] == [2, 1]
    assert int(sum((batch.labels != IGNORE_INDEX).sum() for batch in batches)) == 10
