"""Reading training samples from disk: ours beside plain webdataset and nanoGPT's random crops of a memmap.

All read the same tokens as samples of the same length in batches of the same size, single-threaded and from a
warm page cache. Ours alone has a global shuffle, verified bytes, and resumes anywhere from one integer.
"""

from __future__ import annotations

import io
import itertools
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import webdataset

from benchmarks.timing import interleave, ratio_table
from data_pipeline.loader import training_batches
from data_pipeline.order import SampleOrder
from data_pipeline.ramp import BatchSizes
from data_pipeline.samples.causal import CausalSamples
from data_pipeline.shards import (
    ShardSet,
    TokenizedDocument,
    TokenizerIdentity,
    token_dtype,
    write_manifest,
    write_shard,
)
from data_pipeline.stream import SampleStream

VOCABULARY, SEQUENCE, BATCH, STEPS = 4096, 1024, 16, 50
DOCUMENTS, DOCUMENT_TOKENS = 4000, 500


def _documents() -> Iterator[TokenizedDocument]:
    generator = np.random.default_rng(0)
    for _ in range(DOCUMENTS):
        tokens = generator.integers(0, VOCABULARY, DOCUMENT_TOKENS)
        yield TokenizedDocument(tokens, np.zeros(1, np.int32), np.ones(DOCUMENT_TOKENS, bool))


def _write_ours(folder: Path) -> CausalSamples:
    entry = write_shard(folder / "shard-000000.tar", "000000", _documents(), token_dtype(VOCABULARY))
    write_manifest(folder, [entry], TokenizerIdentity("0" * 64, VOCABULARY, {}), {})
    return CausalSamples(ShardSet.open(folder), SEQUENCE)


def _write_webdataset(folder: Path, samples: CausalSamples) -> str:
    """One member per sample, as a webdataset user would store them."""
    path = folder / "samples.tar"
    with tarfile.open(path, "w") as archive:
        for index in range(len(samples)):
            sample = samples.sample(index, 0)
            data = np.append(sample.inputs, sample.labels[-1]).astype(np.uint16).tobytes()
            member = tarfile.TarInfo(f"{index:08d}.bin")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return str(path)


def _ours(samples: CausalSamples) -> Callable[[], object]:
    stream = SampleStream.single(samples, SampleOrder(len(samples), 0, "train", "global"))

    def read() -> None:
        batches = training_batches(stream, sizes=BatchSizes(BATCH), start_step=0, stop_step=STEPS, dp_rank=0, dp_size=1)
        for batch in batches:
            assert batch.inputs.shape == (BATCH, SEQUENCE)

    return read


def _webdataset(path: str) -> Callable[[], object]:
    def read() -> None:
        dataset = webdataset.WebDataset(path, shardshuffle=False).shuffle(500)
        for batch in itertools.islice(dataset.batched(BATCH, collation_fn=list), STEPS):
            rows = np.stack([np.frombuffer(sample["bin"], np.uint16) for sample in batch]).astype(np.int64)
            torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(rows[:, 1:].copy())

    return read


def _random_crops(folder: Path) -> Callable[[], object]:
    shards = ShardSet.open(folder)
    shards.tokens(0, shards.num_tokens).astype(np.uint16).tofile(folder / "tokens.bin")
    tokens = np.memmap(folder / "tokens.bin", np.uint16, "r")
    generator = np.random.default_rng(0)

    def read() -> None:
        for _ in range(STEPS):
            starts = generator.integers(0, len(tokens) - SEQUENCE - 1, BATCH)
            torch.stack([torch.from_numpy(tokens[s : s + SEQUENCE].astype(np.int64)) for s in starts])
            torch.stack(
                [torch.from_numpy(tokens[start + 1 : start + SEQUENCE + 1].astype(np.int64)) for start in starts]
            )

    return read


def compare() -> tuple[str, dict[str, float]]:
    """Tokens per second of each reader, as text and as figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        samples = _write_ours(folder)
        timings = interleave(
            {
                "ptm-dist": _ours(samples),
                "webdataset, one member per sample": _webdataset(_write_webdataset(folder, samples)),
                "memmap, random crops (nanoGPT)": _random_crops(folder),
            },
            rounds=7,
        )
    tokens = BATCH * SEQUENCE * STEPS
    title = f"loader, batches of {BATCH} x {SEQUENCE}, one process"
    figures = {name: tokens / timing.median for name, timing in timings.items()}
    return ratio_table(title, timings, "ptm-dist", "tokens", tokens), figures
