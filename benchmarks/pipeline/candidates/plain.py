"""What all candidates share: the plain tokens that formats are written from, batches, and how reading is timed."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Figures = dict[str, float]
Batch = tuple[torch.Tensor, torch.Tensor]

TOKEN_DTYPE = np.dtype("<u2")


@dataclass(frozen=True)
class PlainTokens:
    """All tokens of a corpus, and where its documents and sentences begin, each with the number of tokens at the end.

    Attributes:
        tokens: ids, each document ended by the end-of-document id, [tokens], uint16.
        documents: [documents + 1], int64.
        sentences: [sentences + 1], int64.
        special_ids: by role.
        vocab_size: ids of the tokenizer.
    """

    tokens: NDArray[np.uint16]
    documents: NDArray[np.int64]
    sentences: NDArray[np.int64]
    special_ids: dict[str, int]
    vocab_size: int

    def save(self, folder: Path) -> None:
        """Write numpy files and a description."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("tokens", "documents", "sentences"):
            np.save(folder / f"{name}.npy", getattr(self, name))
        description = {"special_ids": self.special_ids, "vocab_size": self.vocab_size}
        (folder / "description.json").write_text(json.dumps(description))

    @classmethod
    def load(cls, folder: str | Path) -> PlainTokens:
        """Map the files that :meth:`save` wrote."""
        arrays = [np.load(Path(folder) / f"{name}.npy", mmap_mode="r") for name in ("tokens", "documents", "sentences")]
        return cls(*arrays, **json.loads((Path(folder) / "description.json").read_text()))

    def windows(self, length: int) -> Iterator[NDArray[np.uint16]]:
        """Successive stretches of so many tokens, neighbours sharing one, as next-token prediction needs them."""
        for begin in range(0, self.tokens.size - length + 1, length - 1):
            yield np.asarray(self.tokens[begin : begin + length])


def documents_of(files: Iterable[str]) -> Iterator[str]:
    """The texts of some jsonl files."""
    for name in files:
        with Path(name).open() as lines:
            for line in lines:
                yield json.loads(line)["text"]


def next_token_batch(rows: Iterable[Any]) -> Batch:
    """Rows of S + 1 tokens as inputs and labels, both [n, S], int64."""
    tokens = torch.from_numpy(np.stack([np.asarray(row) for row in rows]).astype(np.int64))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def time_reading(open_loader: Callable[[], Iterable[Any]], batches: int, samples: int) -> Figures:
    """Open a loader and take so many batches of so many samples from it.

    Returns: seconds until the first batch, the opening included; from then on, samples per second, and microseconds
        of this process's processor time per sample: without workers, all that a sample costs.
    """
    start = time.perf_counter()
    iterator = iter(open_loader())
    next(iterator)
    first, processor = time.perf_counter(), time.process_time()
    taken = sum(1 for _ in islice(iterator, batches - 1)) * samples
    seconds, processor = time.perf_counter() - first, time.process_time() - processor
    if taken != (batches - 1) * samples:
        raise SystemExit(f"the loader ended after {taken // samples + 1} of {batches} batches")
    return {"first_batch_s": first - start, "samples_per_s": taken / seconds, "cpu_us": processor / taken * 1e6}


def time_consuming(open_loader: Callable[[], Iterable[Any]], batches: int, interval_s: float) -> Figures:
    """Take batches at a constant rate, as a training run would, and count the time without one.

    Returns: seconds until the first batch; share of the time from then on that was spent waiting.
    """
    start = time.perf_counter()
    iterator = iter(open_loader())
    next(iterator)
    first = time.perf_counter()
    waited = 0.0
    for _ in range(batches - 1):
        time.sleep(interval_s)
        asked = time.perf_counter()
        next(iterator)
        waited += time.perf_counter() - asked
    return {"first_batch_s": first - start, "stalled_share": waited / (time.perf_counter() - first)}


def time_building(build: Callable[[], int]) -> Figures:
    """Call what gives the number of tokens written, and say how long it took.

    Returns: seconds; seconds of processor time, of all processes that have ended by then; tokens.
    """
    start, processor = time.perf_counter(), _processor_seconds()
    tokens = build()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "cpu_seconds": _processor_seconds() - processor, "tokens": tokens}


def _processor_seconds() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def peak_memory_mib() -> float:
    """Most memory that this process had at one time."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
