"""ptm-dist itself."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pipeline.candidates.plain import (
    Figures,
    PlainTokens,
    peak_memory_mib,
    time_building,
    time_consuming,
    time_reading,
)
from data_pipeline.batches import StepBatch
from data_pipeline.build import BuildOptions, LocalTeam, build_shards
from data_pipeline.loader import training_batches
from data_pipeline.order import SampleOrder
from data_pipeline.ramp import BatchSizes
from data_pipeline.samples import Samples
from data_pipeline.samples.objectives import ObjectiveOptions, build_samples
from data_pipeline.shards import ShardSet
from data_pipeline.store import CacheOptions, open_shards
from data_pipeline.stream import SampleStream, StreamSource
from data_pipeline.tokenizers import load_tokenizer


def build(files: list[str], tokenizer: str, out: str, workers: int, shard_bytes: int = 3 << 20) -> Figures:
    """The whole build: split, sentences, words and block hashes included; a worker at a time makes a shard."""
    options, team = BuildOptions(shard_bytes=shard_bytes), LocalTeam(workers)
    loaded = load_tokenizer(Path(tokenizer))

    def run() -> int:
        summary = build_shards(files, tokenizer=loaded, out=Path(out), options=options, team=team)
        return summary.train.tokens + summary.validation.tokens

    return time_building(run)


def prepare(shards: str, out: str) -> Figures:
    """The tokens of a built folder, for the formats of the others."""
    opened = ShardSet.open(Path(shards))
    size, identity = opened.num_tokens, opened.tokenizer
    PlainTokens(
        opened.tokens(0, size).astype(np.uint16),
        np.append(opened.document_starts(0, size), size),
        np.append(opened.sentence_starts(0, size), size),
        dict(identity.special_ids),
        identity.vocab_size,
    ).save(Path(out))
    return {"tokens": size}


def _samples(shards: ShardSet, sequence: int, **objective: Any) -> Samples:
    return build_samples(shards, ObjectiveOptions(**objective), sequence, 0, "train", False)


def _batches(
    shards: ShardSet, samples: Samples, order: SampleOrder, batch: int, steps: int, workers: int
) -> Iterator[StepBatch]:
    return training_batches(
        SampleStream([StreamSource("train", samples, order, shards=shards)]),
        sizes=BatchSizes(batch),
        start_step=0,
        stop_step=steps,
        dp_rank=0,
        dp_size=1,
        num_workers=workers,
    )


def _shuffled(data: str, sequence: int, batch: int, steps: int, workers: int, **objective: Any) -> Iterator[StepBatch]:
    shards = ShardSet.open(Path(data))
    samples = _samples(shards, sequence, **objective)
    return _batches(shards, samples, SampleOrder(len(samples), 0, "train", "global"), batch, steps, workers)


def read(data: str, sequence: int, batch: int, batches: int, workers: int) -> Figures:
    """Global shuffle of causal samples; what is read is verified against the hashes the first time."""
    return time_reading(lambda: _shuffled(data, sequence, batch, batches, workers, kind="causal"), batches, batch)


def mask(data: str, sequence: int, batch: int, batches: int, workers: int, unit: str) -> Figures:
    """Full sentences, masked anew in every epoch; the index of the sentences is built at each start."""
    objective = {"kind": "mlm", "mask_unit": unit, "max_ngram": 3}
    return time_reading(lambda: _shuffled(data, sequence, batch, batches, workers, **objective), batches, batch)


def stream(url: str, sequence: int, batch: int, batches: int, interval_s: float, workers: int, block: int) -> Figures:
    """Into an empty cache, fetched ahead, shuffled within so many shards."""
    with tempfile.TemporaryDirectory() as cache:

        def open_loader() -> Iterator[StepBatch]:
            shards = open_shards(url, CacheOptions(Path(cache), limit_bytes=1 << 30))
            samples = _samples(shards, sequence, kind="causal")
            ends = np.cumsum([shard.tokens for shard in shards.manifest.shards])
            cells = np.append(samples.samples_before(np.append(0, ends[:-1])), len(samples))
            order = SampleOrder(len(samples), 0, "train", "block", cells=cells, block_cells=block)
            return _batches(shards, samples, order, batch, batches, workers)

        return time_consuming(open_loader, batches, interval_s)


def resume(samples: int, batch: int) -> Figures:
    """The samples of a step in the middle of the second epoch, by arithmetic."""
    before = peak_memory_mib()
    start = time.perf_counter()
    order = SampleOrder(samples, 0, "train", "global")
    counter = samples + samples // 2
    indices = order.samples(counter, counter + batch)
    seconds = time.perf_counter() - start
    assert indices.size == batch
    return {"seconds": seconds, "memory_mib": peak_memory_mib() - before}
