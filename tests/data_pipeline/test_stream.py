"""Several sources as one stream: elastic, resumable, and readable without a broken shard."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.loader import training_batches
from data_pipeline.order import Mixture, SampleOrder
from data_pipeline.ramp import BatchSizes
from data_pipeline.samples.objectives import ObjectiveOptions, build_samples
from data_pipeline.shards import BrokenShard, ShardSet
from data_pipeline.stateful import StatefulLoader
from data_pipeline.stream import BrokenSource, SampleStream, StreamSource
from tests.data_pipeline.shard_files import counting_prose, random_prose

COLUMNS = ("inputs", "labels", "lengths", "segments", "pair_labels")
KINDS = ("causal", "mlm", "mlm_nsp", "mlm_sop")
SIZES = BatchSizes(13, start=3, increment=5, ramp_samples=40)
LEVELS = [(0, (3, 1, 2)), (37, (1, 4, 0)), (80, (1, 1, 1))]
STEPS = 16


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = []
    for seed in range(3):
        folder = tmp_path_factory.mktemp(f"source{seed}")
        counting_prose(folder, [random_prose(5, seed=10 * seed + shard) for shard in range(4)])
        found.append(folder)
    return found


def stream_of(folders, kind="causal", shuffle="global"):
    sources = []
    for number, folder in enumerate(folders):
        shards = ShardSet.open(folder)
        name = f"source-{number}"
        samples = build_samples(shards, ObjectiveOptions(kind), 32, 7, name, keep_tail=False)
        sources.append(StreamSource(name, samples, SampleOrder(len(samples), 7, name, shuffle), 7, shards))
    return SampleStream(sources, Mixture(LEVELS) if len(sources) > 1 else None)


def load(stream, start, stop, dp_rank=0, dp_size=1, **options):
    return list(
        training_batches(
            stream, sizes=SIZES, start_step=start, stop_step=stop, dp_rank=dp_rank, dp_size=dp_size, **options
        )
    )


def whole_batches(stream, start, stop, dp_size, **options):
    """The global batches, put together from all ranks."""
    ranks = [load(stream, start, stop, rank, dp_size, **options) for rank in range(dp_size)]
    return [
        [torch.cat([getattr(piece, name) for piece in pieces]) for name in COLUMNS]
        for pieces in zip(*ranks, strict=True)
    ]


def assert_equal(one, other):
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_any_stop_and_any_two_world_sizes_give_the_undisturbed_batches(folders, kind):
    stream = stream_of(folders, kind)
    undisturbed = whole_batches(stream, 0, STEPS, 1)
    # A run that stops at some step with one size and goes on with another is made of two of these parts.
    for size, stop in itertools.product(range(1, 7), range(1, STEPS)):
        assert_equal(whole_batches(stream, 0, stop, size), undisturbed[:stop])
        assert_equal(whole_batches(stream, stop, STEPS, size), undisturbed[stop:])


def test_loader_processes_change_nothing(folders):
    stream = stream_of(folders)
    assert_equal(whole_batches(stream, 2, STEPS, 2, num_workers=2), whole_batches(stream, 2, STEPS, 2))


@settings(deadline=None, max_examples=100)
@given(cuts=st.lists(st.integers(0, 150), max_size=5))
def test_each_source_is_read_in_its_own_order_whatever_the_weights(folders, cuts):
    stream = stream_of(folders)
    edges = [0, *sorted(cuts), 150]
    pieces = [stream.picks(begin, end) for begin, end in itertools.pairwise(edges)]
    sources = np.concatenate([piece.sources for piece in pieces])
    indices = np.concatenate([piece.indices for piece in pieces])
    for number, source in enumerate(stream.sources):
        own = indices[sources == number]
        np.testing.assert_array_equal(own, source.order.samples(0, own.size))


def damaged(folder, copy):
    """A copy of a data set with a flipped byte in the tokens of its second shard, and that shard's name."""
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    entry = ShardSet.open(folder).manifest.shards[1]
    data = bytearray((copy / entry.name).read_bytes())
    data[entry.members["tokens.bin"].offset + 11] ^= 4
    (copy / entry.name).write_bytes(data)
    return entry.name


@pytest.fixture
def broken(folders, tmp_path):
    name = damaged(folders[1], tmp_path)
    return lambda kind="causal": (stream_of([folders[0], tmp_path, folders[2]], kind), name)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_shard_is_named_with_its_source(broken, workers):
    stream, name = broken()
    with pytest.raises(BrokenSource) as raised:
        load(stream, 0, STEPS, num_workers=workers)
    assert (raised.value.source, raised.value.shard) == ("source-1", name)
    assert "is damaged" in str(raised.value)
    assert isinstance(raised.value, BrokenShard)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_in_quarantine_are_replaced_the_same_on_all_ranks_and_no_others(broken, folders, kind):
    stream, name = broken(kind)
    stream.quarantine([("source-1", name)])
    replaced = whole_batches(stream, 0, STEPS, 1)
    for size in (2, 5):
        assert_equal(whole_batches(stream, 0, STEPS, size), replaced)
    sound = stream_of(folders, kind)
    last = SIZES.first_sample(STEPS)
    picks, sound_rows = sound.picks(0, last), sound.read(sound.picks(0, last))
    shard = sound.sources[1].shards.manifest.shards[1]
    first_token = sound.sources[1].shards.manifest.shards[0].tokens
    rows = torch.cat([batch[0] for batch in replaced]).numpy()
    changed = (rows != sound_rows.inputs).any(axis=1)
    assert 0 < changed.sum() < changed.size / 2
    assert set(picks.sources[changed].tolist()) == {1}
    # In counting prose ids are places: none of the shard's text is left.
    source = picks.sources == 1
    places = rows[source][(rows[source] > 6)] - 6
    if kind == "causal":
        assert not ((places > first_token) & (places < first_token + shard.tokens - 6)).any()


def test_a_run_goes_into_quarantine_at_the_step_that_needs_the_shard(broken):
    stream, name = broken()
    told = []

    def handle(error):
        told.append(None if error is None else (error.source, error.shard))
        return [told[-1]] if error is not None else None

    batches = load(stream, 0, STEPS, handle_broken=handle)
    assert [batch.step for batch in batches] == list(range(STEPS))
    assert [entry for entry in told if entry] == [("source-1", name)]
    from_the_start, _ = broken()
    from_the_start.quarantine([("source-1", name)])
    for one, other in zip(batches, load(from_the_start, 0, STEPS), strict=True):
        assert torch.equal(one.inputs, other.inputs)


def test_the_state_of_a_loader_fits_any_number_of_ranks(folders):
    stream = stream_of(folders)
    undisturbed = [batch.inputs for batch in StatefulLoader(stream, SIZES, STEPS)]
    loader = StatefulLoader(stream, SIZES, STEPS, dp_rank=1, dp_size=3)
    for _ in zip(range(4), loader, strict=False):
        pass
    state = loader.state_dict()
    assert state["step"] == 4
    pieces = []
    for rank in range(2):
        other = StatefulLoader(stream, SIZES, STEPS, dp_rank=rank, dp_size=2)
        other.load_state_dict(state)
        assert len(other) == STEPS - 4
        pieces.append([batch.inputs for batch in other])
    for expected, *halves in zip(undisturbed[4:], *pieces, strict=True):
        assert torch.equal(torch.cat(halves), expected)


def test_a_state_of_other_batch_sizes_is_refused(folders):
    state = StatefulLoader(stream_of(folders), BatchSizes(4), STEPS).state_dict() | {"step": 3, "samples": 12}
    with pytest.raises(ValueError, match="12 samples in 3 steps"):
        StatefulLoader(stream_of(folders), SIZES, STEPS).load_state_dict(state)


def test_sources_that_do_not_fit_are_refused(folders):
    single = stream_of(folders[:1])
    with pytest.raises(ValueError, match="a mixture of 3 sources for 1"):
        SampleStream(single.sources, Mixture(LEVELS))
