"""litdata: binary chunks of tokens and its StreamingDataset."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from litdata import StreamingDataLoader, StreamingDataset, TokensLoader, optimize

from benchmarks.pipeline.candidates.plain import Figures, PlainTokens, next_token_batch, time_consuming, time_reading

_WINDOW = 1025


def _tokens(plain: str, part: tuple[int, int]) -> Iterator[torch.Tensor]:
    for row in np.asarray(PlainTokens.load(plain).tokens[part[0] : part[1]]).astype(np.int32).reshape(-1, _WINDOW):
        yield torch.from_numpy(row)


def prepare(plain: str, out: str, shard_bytes: int) -> Figures:
    """Blocks of 1,025 tokens, 32 bits each, as the project's own examples write them."""
    whole = PlainTokens.load(plain).tokens.size // _WINDOW * _WINDOW
    step = _WINDOW * 1024
    parts = [(begin, min(begin + step, whole)) for begin in range(0, whole, step)]
    optimize(
        fn=partial(_tokens, plain),
        inputs=parts,
        output_dir=out,
        chunk_bytes=shard_bytes,
        num_workers=1,
        item_loader=TokensLoader(block_size=_WINDOW),
        verbose=False,
    )
    return {"samples": whole // _WINDOW}


def _loader(dataset: StreamingDataset, batch: int, workers: int) -> Any:
    return StreamingDataLoader(dataset, batch_size=batch, num_workers=workers, collate_fn=next_token_batch)


def read(data: str, batch: int, batches: int, workers: int) -> Figures:
    """Chunks in random order, and the samples of each."""

    def open_loader() -> Any:
        dataset = StreamingDataset(data, item_loader=TokensLoader(_WINDOW), shuffle=True, drop_last=True)
        return _loader(dataset, batch, workers)

    return time_reading(open_loader, batches, batch)


def stream(endpoint: str, bucket: str, batch: int, batches: int, interval_s: float, workers: int) -> Figures:
    """From S3 into an empty cache, chunks in random order and the samples of each."""
    from litdata.streaming import downloader

    os.environ.update(AWS_ACCESS_KEY_ID="any", AWS_SECRET_ACCESS_KEY="any", AWS_DEFAULT_REGION="us-east-1")
    # Its client for chunks refuses plain HTTP, and the project has no setting for that.
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:

        def open_loader() -> Any:
            dataset = StreamingDataset(
                f"s3://{bucket}",
                cache_dir=cache,
                item_loader=TokensLoader(_WINDOW),
                shuffle=True,
                drop_last=True,
                storage_options={"endpoint_url": endpoint},
            )
            return _loader(dataset, batch, workers)

        return time_consuming(open_loader, batches, interval_s)
