"""The five comparisons: each prepares what it needs, runs the candidates in turn and gives tables."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.pipeline.rounds import Candidate, interleave
from benchmarks.pipeline.server import serve
from benchmarks.pipeline.tables import Table
from benchmarks.pipeline.workload import SEQUENCE, TOKENIZERS, Workload, forget

BATCH, MASK_BATCH = 16, 32
RATE = 1_000_000
"""Tokens per second that the streaming run consumes."""
DELAY_S = 0.05
"""From a request to the first byte of the answer."""
BLOCK_SHARDS = 4
_FURTHER = (("first_batch_s", "first batch, s", 1.0), ("cpu_us", "CPU of this process, us/sample", 1.0))


@dataclass(frozen=True)
class Sizes:
    """How much is measured: batches of each run, and the largest number of samples to arrange with peers."""

    read: int = 1200
    mask: int = 400
    stream: int = 500
    resume: int = 10**8


FULL = Sizes()
QUICK = Sizes(read=60, mask=30, stream=60, resume=10**6)
"""To see that everything runs; the figures mean nothing."""

Suite = Callable[[Workload, int, Sizes], list[Table]]


def build(workload: Workload, rounds: int, sizes: Sizes) -> list[Table]:
    """Text to tokens on disk, on one core and on two."""
    tables = []
    for tokenizer, kind in TOKENIZERS.items():
        for cores in (1, 2):
            out = workload.folder / "out"

            def candidate(
                name: str, project: str, out: Path = out, tokenizer: str = tokenizer, cores: int = cores
            ) -> Candidate:
                options = {
                    "files": workload.sample,
                    "tokenizer": workload.tokenizer(tokenizer),
                    "out": str(out),
                    "workers": cores,
                    "cores": cores,
                }
                return Candidate(name, project, "build", options, partial(_remove, out))

            candidates = [
                candidate("ptm-dist", "ours"),
                candidate("megatron-core, pool and IndexedDatasetBuilder", "megatron"),
                candidate("mosaicml-streaming, MDSWriter", "mosaicml"),
            ]
            if tokenizer == "bpe":
                candidates.append(candidate("datatrove, DocumentTokenizer", "trove"))
            outcomes = interleave(candidates, rounds)
            for outcome in outcomes.values():
                for figures in outcome.rounds:
                    figures["mb_per_s"] = workload.sample_bytes / 1e6 / figures["seconds"]
                    figures["mb_per_cpu_s"] = workload.sample_bytes / 1e6 / figures["cpu_seconds"]
            title = f"{kind}, 32,000 ids, {workload.sample_bytes / 1e6:.0f} MB of text, {cores} core{'s'[: cores - 1]}"
            tables.append(
                Table(
                    title,
                    outcomes,
                    "mb_per_s",
                    "MB/s",
                    further=[("mb_per_cpu_s", "MB per CPU second", 1.0), ("tokens", "million tokens", 1e-6)],
                )
            )
            _remove(out)
    return tables


def _remove(out: Path) -> None:
    for folder in (out, out.with_name(f"{out.name}-log"), out.with_name(f"{out.name}.building")):
        shutil.rmtree(folder, ignore_errors=True)


def read(workload: Workload, rounds: int, sizes: Sizes) -> list[Table]:
    """Samples of 1,024 tokens in random order from local files."""
    for project in ("megatron", "mosaicml", "lightning", "webdataset_tars"):
        workload.make_peer(project)
    tables = []
    for cold in (False, True):
        for workers in (0, 1, 2):
            candidates = [
                _reader(workload, sizes, "ptm-dist, global shuffle", "ours", workers, cold, sequence=SEQUENCE),
                _reader(
                    workload,
                    sizes,
                    "megatron-core GPTDataset",
                    "megatron",
                    workers,
                    cold,
                    sequence=SEQUENCE,
                    plain=workload.plain,
                ),
                _reader(workload, sizes, "mosaicml-streaming, py1e", "mosaicml", workers, cold),
                _reader(workload, sizes, "litdata, TokensLoader", "lightning", workers, cold),
                _reader(workload, sizes, "webdataset, resampled, buffer of 4,096", "webdataset_tars", workers, cold),
            ]
            title = f"{workers} workers, files {'not in' if cold else 'in'} the page cache"
            further = [("samples_per_s", "million tokens/s", SEQUENCE / 1e6), *_FURTHER]
            tables.append(Table(title, interleave(candidates, rounds), "samples_per_s", "samples/s", further=further))
    return tables


def _reader(
    workload: Workload, sizes: Sizes, name: str, project: str, workers: int, cold: bool, **more: Any
) -> Candidate:
    data = workload.data(project)
    options = {"data": data, "batch": BATCH, "batches": sizes.read, "workers": workers, **more}
    return Candidate(name, project, "read", options, partial(forget, data) if cold else lambda: None)


def mask(workload: Workload, rounds: int, sizes: Sizes) -> list[Table]:
    """Batches for masked language modelling."""
    workload.make_peer("megatron")
    tables = []
    for sequence in (128, 512):
        for workers in (0, 2):
            common = {"sequence": sequence, "batch": MASK_BATCH, "batches": sizes.mask, "workers": workers}
            plain = {**common, "plain": workload.plain}
            ours = {**common, "data": workload.data("ours")}
            megatron = {**plain, "data": workload.data("megatron")}
            hugging_face = {**plain, "unit": "token", "tokenizer": workload.tokenizer("bpe")}
            units = {
                "token": [
                    Candidate("ptm-dist", "ours", "mask", {**ours, "unit": "token"}),
                    Candidate("HF DataCollatorForLanguageModeling", "hugging_face", "mask", hugging_face),
                    Candidate("megatron-core BERT dataset", "megatron", "mask", {**megatron, "unit": "token"}),
                ],
                "ngram": [
                    Candidate("ptm-dist", "ours", "mask", {**ours, "unit": "ngram"}),
                    Candidate("megatron-core BERT dataset", "megatron", "mask", {**megatron, "unit": "ngram"}),
                ],
            }
            for unit, candidates in units.items():
                words = "single tokens" if unit == "token" else "n-grams of up to 3 words"
                title = f"{words}, {MASK_BATCH} x {sequence}, {workers} workers"
                outcomes = interleave(candidates, rounds)
                further = [("samples_per_s", "samples/s", 1.0), *_FURTHER]
                tables.append(
                    Table(title, outcomes, "samples_per_s", "batches/s", scale=1 / MASK_BATCH, further=further)
                )
    return tables


def resume(workload: Workload, rounds: int, sizes: Sizes) -> list[Table]:
    """From a step's number to its samples, in the middle of an epoch."""
    tables = []
    for samples in (10**6, 10**7, 10**8, 10**9, 10**12):
        options = {"samples": samples, "batch": 1024}
        candidates = [Candidate("ptm-dist", "ours", "resume", options)]
        if samples <= sizes.resume:
            candidates += [
                Candidate("megatron-core, indexes of GPTDataset", "megatron", "resume", options),
                Candidate("mosaicml-streaming, py1e", "mosaicml", "resume", options),
            ]
        # Both peers' times and memory grow at least in proportion; from 10^8 on, a run takes minutes and gigabytes.
        outcomes = interleave(candidates, rounds if samples < 10**8 else min(rounds, 2))
        further = [("memory_mib", "memory, MiB", 1.0)]
        tables.append(
            Table(f"{samples:,} samples", outcomes, "seconds", "ms", scale=1e3, more_is_better=False, further=further)
        )
    return tables


def stream(workload: Workload, rounds: int, sizes: Sizes) -> list[Table]:
    """Training at a constant rate from a server that answers each request after 50 ms, with an empty cache."""
    workload.make_ours("small")
    for project in ("mosaicml", "lightning"):
        workload.make_peer(project, "small")
    tables = []
    with serve(workload.folder, DELAY_S) as address:
        for workers in (0, 2):
            common = {
                "batch": BATCH,
                "batches": sizes.stream,
                "interval_s": BATCH * SEQUENCE / RATE,
                "workers": workers,
            }

            def bucket(project: str) -> str:
                return Path(workload.data(project, "small")).relative_to(workload.folder).as_posix()

            mosaicml = {**common, "endpoint": address, "bucket": bucket("mosaicml"), "block": 4096}
            lightning = {**common, "endpoint": address, "bucket": bucket("lightning")}
            ours = {**common, "url": f"{address}/{bucket('ours')}", "sequence": SEQUENCE, "block": BLOCK_SHARDS}
            candidates = [
                Candidate(f"ptm-dist, blocks of {BLOCK_SHARDS} shards", "ours", "stream", ours),
                Candidate("mosaicml-streaming, py1e, blocks of 4,096 samples", "mosaicml", "stream", mosaicml),
                Candidate("litdata", "lightning", "stream", lightning),
            ]
            title = f"{RATE:,} tokens/s, files of 2 MiB, {workers} workers"
            tables.append(
                Table(
                    title,
                    interleave(candidates, rounds),
                    "stalled_share",
                    "% of the time without data",
                    scale=100,
                    more_is_better=False,
                    further=[("first_batch_s", "first batch, s", 1.0)],
                )
            )
    return tables


SUITES: dict[str, Suite] = {"build": build, "read": read, "mask": mask, "resume": resume, "stream": stream}
