"""mosaicml-streaming: MDS shards and StreamingDataset."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from streaming import MDSWriter, StreamingDataset
from streaming.base.util import merge_index
from torch.utils.data import DataLoader

from benchmarks.pipeline.candidates.encoders import END_OF_DOCUMENT, load_encoder
from benchmarks.pipeline.candidates.plain import (
    Figures,
    PlainTokens,
    documents_of,
    next_token_batch,
    peak_memory_mib,
    time_building,
    time_consuming,
    time_reading,
)

_COLUMNS = {"tokens": "ndarray:uint16"}
_WINDOW = 1025
_TEXTS = 256
"""Documents that are encoded in one call."""


def _encoded_windows(files: Iterable[str], tokenizer: str) -> Iterator[NDArray[np.uint16]]:
    """The documents of some files joined and cut, as LLM Foundry's converter does it."""
    encode = load_encoder(tokenizer)
    waiting: list[int] = []
    texts: list[str] = []

    def cut() -> Iterator[NDArray[np.uint16]]:
        for ids in encode(texts):
            waiting.extend(ids)
            waiting.append(END_OF_DOCUMENT)
        texts.clear()
        whole = len(waiting) // _WINDOW * _WINDOW
        yield from np.array(waiting[:whole], dtype=np.uint16).reshape(-1, _WINDOW)
        del waiting[:whole]

    for text in documents_of(files):
        texts.append(text)
        if len(texts) == _TEXTS:
            yield from cut()
    yield from cut()


def _write(windows: Iterable[NDArray[np.uint16]], out: str, shard_bytes: int) -> int:
    count = 0
    with MDSWriter(out=out, columns=_COLUMNS, size_limit=shard_bytes) as writer:
        for window in windows:
            writer.write({"tokens": window})
            count += 1
    return count


def _write_part(tokenizer: str, part: tuple[str, list[str]]) -> int:
    return _write(_encoded_windows(part[1], tokenizer), part[0], 64 << 20)


def build(files: list[str], tokenizer: str, out: str, workers: int) -> Figures:
    """Every process encodes and writes its share of the files; the indexes are joined at the end."""
    return time_building(lambda: _build(files, tokenizer, out, workers))


def _build(files: list[str], tokenizer: str, out: str, workers: int) -> int:
    parts = [(f"{out}/{number}", files[number::workers]) for number in range(workers)]
    with multiprocessing.Pool(workers) as pool:
        windows = sum(pool.map(partial(_write_part, tokenizer), parts))
        pool.close()
        pool.join()
    merge_index(out, keep_local=True)
    return windows * _WINDOW


def prepare(plain: str, out: str, shard_bytes: int) -> Figures:
    """Samples of 1,025 tokens each."""
    return {"samples": _write(PlainTokens.load(plain).windows(_WINDOW), out, shard_bytes)}


def _collate(rows: list[dict[str, Any]]) -> Any:
    return next_token_batch(row["tokens"] for row in rows)


def _loader(dataset: StreamingDataset, batch: int, workers: int, start: str | None = None) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_size=batch,
        num_workers=workers,
        collate_fn=_collate,
        drop_last=True,
        multiprocessing_context=start if workers else None,
    )


def read(data: str, batch: int, batches: int, workers: int) -> Figures:
    """Shuffled by the default algorithm, py1e."""
    return time_reading(
        lambda: _loader(StreamingDataset(local=data, shuffle=True, batch_size=batch), batch, workers), batches, batch
    )


def resume(samples: int, batch: int) -> Figures:
    """The arrangement of an epoch after its middle, for one rank with one worker, in shards of 32,768 samples."""
    from streaming.base.partition import get_partitions
    from streaming.base.shuffle import get_shuffle

    shards = np.full(-(-samples // 32768), 32768, dtype=np.int64)
    shards[-1] -= shards.sum() - samples
    before = peak_memory_mib()
    start = time.perf_counter()
    ids = get_partitions("relaxed", samples, 1, 1, 1, 1, batch, samples // 2 // batch * batch, 1)
    shuffled = get_shuffle("py1e", shards, 1, 9176, 1, 1 << 22)
    ids = np.where(ids != -1, shuffled[ids], -1)
    seconds = time.perf_counter() - start
    assert ids[0, 0, 0, 0].size == batch
    return {"seconds": seconds, "memory_mib": peak_memory_mib() - before}


def stream(
    endpoint: str, bucket: str, batch: int, batches: int, interval_s: float, workers: int, block: int
) -> Figures:
    """From S3 into an empty cache, shuffled within blocks of so many samples."""
    os.environ.update(S3_ENDPOINT_URL=endpoint, AWS_ACCESS_KEY_ID="any", AWS_SECRET_ACCESS_KEY="any")
    os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:

        def open_loader() -> Any:
            dataset = StreamingDataset(
                remote=f"s3://{bucket}",
                local=str(Path(cache) / "shards"),
                shuffle=True,
                shuffle_block_size=block,
                batch_size=batch,
                num_canonical_nodes=1,
            )
            # Forked workers would share the connection over which the index came, and mix up each other's answers.
            return _loader(dataset, batch, workers, "spawn")

        return time_consuming(open_loader, batches, interval_s)
