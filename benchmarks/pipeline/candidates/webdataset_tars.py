"""webdataset: tar files with one member for each sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import webdataset

from benchmarks.pipeline.candidates.plain import Figures, PlainTokens, next_token_batch, time_reading

_BUFFER = 4096
"""Samples of the shuffle buffer."""


def prepare(plain: str, out: str, shard_bytes: int) -> Figures:
    """Samples of 1,025 tokens each."""
    Path(out).mkdir(parents=True)
    count = 0
    with webdataset.ShardWriter(f"{out}/%06d.tar", maxsize=shard_bytes, maxcount=10**9, verbose=0) as writer:
        for count, window in enumerate(PlainTokens.load(plain).windows(1025), start=1):
            writer.write({"__key__": f"{count:09d}", "bin": window.tobytes()})
    return {"samples": count}


def _collate(rows: list[dict[str, bytes]]) -> Any:
    return next_token_batch(np.frombuffer(row["bin"], dtype=np.uint16) for row in rows)


def read(data: str, batch: int, batches: int, workers: int) -> Figures:
    """Tar files drawn at random without end, samples through a shuffle buffer; what is read is no epoch."""

    def open_loader() -> Any:
        tars = sorted(str(path) for path in Path(data).glob("*.tar"))
        dataset = webdataset.WebDataset(tars, resampled=True).shuffle(_BUFFER, initial=_BUFFER)
        return webdataset.WebLoader(dataset.batched(batch, collation_fn=_collate), batch_size=None, num_workers=workers)

    return time_reading(open_loader, batches, batch)
