"""ptm-dist itself."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pipeline.candidates.plain import Figures, PlainTokens, peak_memory_mib, time_consuming, time_reading
from data_pipeline.build import build_shards
from data_pipeline.loader import StepBatch, training_batches
from data_pipeline.order import SampleOrder
from data_pipeline.ramp import BatchSizes
from data_pipeline.samples import Samples
from data_pipeline.samples.objectives import ObjectiveOptions, build_samples
from data_pipeline.shards import ShardSet
from data_pipeline.store import CacheOptions, Prefetcher, RemoteFiles
from data_pipeline.stream import SampleStream
from data_pipeline.tokenizers import load_tokenizer


def build(files: list[str], tokenizer: str, out: str, workers: int, shard_bytes: int = 64 << 20) -> Figures:
    """The whole build: split, sentences, words and block hashes included."""
    loaded = load_tokenizer(Path(tokenizer))
    start = time.perf_counter()
    summary = build_shards(
        files,
        tokenizer=loaded,
        tokenizer_folder=Path(tokenizer),
        out=Path(out),
        workers=workers,
        shard_bytes=shard_bytes,
    )
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "tokens": summary.train.tokens + summary.validation.tokens}


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


def _batches(samples: Samples, order: SampleOrder, batch: int, steps: int, workers: int) -> Iterator[StepBatch]:
    return training_batches(
        SampleStream.single(samples, order),
        sizes=BatchSizes(batch),
        start_step=0,
        stop_step=steps,
        dp_rank=0,
        dp_size=1,
        num_workers=workers,
    )


def _shuffled(samples: Samples, batch: int, steps: int, workers: int) -> Iterator[StepBatch]:
    return _batches(samples, SampleOrder(len(samples), 0, "train", "global"), batch, steps, workers)


def read(data: str, sequence: int, batch: int, batches: int, workers: int) -> Figures:
    """Global shuffle of causal samples; what is read is verified against the hashes the first time."""

    def open_loader() -> Iterable[StepBatch]:
        return _shuffled(_samples(ShardSet.open(Path(data)), sequence, kind="causal"), batch, batches, workers)

    return time_reading(open_loader, batches, batch)


def mask(data: str, sequence: int, batch: int, batches: int, workers: int, unit: str) -> Figures:
    """Full sentences, masked anew in every epoch."""

    def open_loader() -> Iterable[StepBatch]:
        samples = _samples(ShardSet.open(Path(data)), sequence, kind="mlm", mask_unit=unit, max_ngram=3)
        return _shuffled(samples, batch, batches, workers)

    return time_reading(open_loader, batches, batch)


def stream(url: str, sequence: int, batch: int, batches: int, interval_s: float, workers: int, block: int) -> Figures:
    """Into an empty cache, fetched ahead, shuffled within so many shards."""
    with tempfile.TemporaryDirectory() as cache:

        def open_loader() -> Iterator[StepBatch]:
            files = RemoteFiles(url, CacheOptions(Path(cache), limit_bytes=1 << 30))
            shards = ShardSet.open(files)
            samples = _samples(shards, sequence, kind="causal")
            ends = np.cumsum([shard.tokens for shard in shards.manifest.shards])
            cells = np.append(samples.samples_before(np.append(0, ends[:-1])), len(samples))
            order = SampleOrder(len(samples), 0, "train", "block", cells=cells, block_cells=block)
            with Prefetcher(files, _future(samples, order, batch, batches)) as prefetcher:
                for one in _batches(samples, order, batch, batches, workers):
                    prefetcher.advance(one.step)
                    yield one

        return time_consuming(open_loader, batches, interval_s)


def _future(samples: Samples, order: SampleOrder, batch: int, batches: int) -> Iterator[tuple[int, list[int]]]:
    for step in range(batches):
        rows = samples.shards_of(*order.picks(step * batch, (step + 1) * batch))
        yield step, sorted({shard for row in rows for shard in row})


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
