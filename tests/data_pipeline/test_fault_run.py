"""A thousand batches from a server of which one request in five fails, in every way that requests fail."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from data_pipeline.loader import training_batches
from data_pipeline.order import SampleOrder
from data_pipeline.ramp import BatchSizes
from data_pipeline.samples.objectives import ObjectiveOptions, build_samples
from data_pipeline.shards import ShardSet
from data_pipeline.store import CacheOptions, open_shards
from data_pipeline.stream import BrokenSource, SampleStream, StreamSource
from tests.data_pipeline.servers import always, random_faults, web_server
from tests.data_pipeline.shard_files import counting_prose, random_prose

STEPS, SHARDS = 1000, 16
SIZES = BatchSizes(6)
KINDS = ("error", "stall", "truncate", "flip")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    counting_prose(place, [random_prose(6, seed=shard) for shard in range(SHARDS)])
    return place


def stream_of(shards, kind="causal"):
    samples = build_samples(shards, ObjectiveOptions(kind), 32, 7, "train", keep_tail=False)
    cells = np.append(samples.samples_before(shards.shard_starts), len(samples))
    order = SampleOrder(len(samples), 7, "train", "block", cells=cells, block_cells=3)
    return SampleStream([StreamSource("train", samples, order, 7, shards)])


def remote(url, folder, cache, retries=8, kind="causal"):
    largest = max(entry.bytes for entry in ShardSet.open(folder).manifest.shards)
    options = CacheOptions(cache, 5 * largest, threads=2, retries=retries, timeout_s=0.2, backoff_s=0.01)
    return stream_of(open_shards(url, options), kind)


def batches(stream, dp_rank=0, dp_size=1, handle_broken=None):
    found = training_batches(
        stream,
        sizes=SIZES,
        start_step=0,
        stop_step=STEPS,
        dp_rank=dp_rank,
        dp_size=dp_size,
        handle_broken=handle_broken,
    )
    return [torch.cat([batch.inputs.flatten(), batch.labels.flatten()]) for batch in found]


@pytest.mark.parametrize("kind", ["causal", "mlm"])
def test_transient_faults_of_every_kind_leave_a_thousand_batches_bitwise_right(folder, tmp_path, kind):
    with web_server(folder, faults=random_faults(0.05, KINDS), stall_s=0.6) as server:
        found = batches(remote(server.url, folder, tmp_path, kind=kind))
        assert set(server.faults_made) == set(KINDS)
    expected = batches(stream_of(ShardSet.open(folder), kind))
    assert len(found) == STEPS
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_that_stays_broken_ends_the_run_with_its_name_and_the_cause(folder, tmp_path, kind):
    name = ShardSet.open(folder).manifest.shards[5].name
    causes = {"error": "HTTP 500", "stall": "timed out", "truncate": " bytes", "flip": "is damaged"}
    with web_server(folder, faults=always(kind, name), stall_s=0.6) as server:
        with pytest.raises(BrokenSource) as raised:
            batches(remote(server.url, folder, tmp_path, retries=2))
        assert raised.value.shard == name
        assert name in str(raised.value)
        assert causes[kind] in str(raised.value)


class Agreement:
    """What ranks tell each other, for ranks that are threads."""

    def __init__(self, ranks):
        self.barrier = threading.Barrier(ranks, timeout=60)
        self.told = [None] * ranks
        self.agreed = set()

    def handler(self, rank):
        mine = set()

        def handle(error):
            self.told[rank] = None if error is None else (error.source, error.shard)
            self.barrier.wait()
            self.agreed |= {entry for entry in self.told if entry}
            self.barrier.wait()
            if self.agreed <= mine:
                return None
            mine.update(self.agreed)
            return sorted(mine)

        return handle


def test_replacing_a_shard_that_stays_broken_is_deterministic_and_all_ranks_agree(folder, tmp_path):
    name = ShardSet.open(folder).manifest.shards[5].name
    runs = []
    with web_server(folder, faults=always("error", name)) as server:
        for ranks in (1, 3):
            agreement = Agreement(ranks)
            streams = [remote(server.url, folder, tmp_path / f"{ranks}-{rank}", retries=1) for rank in range(ranks)]
            with ThreadPoolExecutor(ranks) as pool:
                parts = pool.map(
                    lambda rank, ranks=ranks, streams=streams, agreement=agreement: batches(
                        streams[rank], rank, ranks, agreement.handler(rank)
                    ),
                    range(ranks),
                )
                runs.append([torch.cat([part.view(2, -1) for part in step], 1) for step in zip(*parts, strict=True)])
            assert agreement.agreed == {("train", name)}
    for other in runs[1:]:
        assert all(torch.equal(one, two) for one, two in zip(runs[0], other, strict=True))
    sound = batches(stream_of(ShardSet.open(folder)))
    changed = sum(not torch.equal(one.flatten(), other) for one, other in zip(runs[0], sound, strict=True))
    assert 0 < changed < STEPS
