"""megatron-core: .bin/.idx pairs, GPTDataset and the masked dataset of BERT."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.datasets.bert_dataset import BERTMaskedWordPieceDataset, BERTMaskedWordPieceDatasetConfig
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from benchmarks.pipeline.candidates.encoders import END_OF_DOCUMENT, Encoder, load_encoder
from benchmarks.pipeline.candidates.plain import Figures, PlainTokens, peak_memory_mib, time_building, time_reading


class _Encoder:
    """One line of jsonl to ids, in a worker of a pool, as the project's preprocess tool does it."""

    encode: Encoder

    @classmethod
    def start(cls, tokenizer: str) -> None:
        cls.encode = staticmethod(load_encoder(tokenizer))

    @classmethod
    def line(cls, line: str) -> list[int]:
        return [*cls.encode([json.loads(line)["text"]])[0], END_OF_DOCUMENT]


def build(files: list[str], tokenizer: str, out: str, workers: int) -> Figures:
    """A pool encodes lines, this process writes them; no sentences, no split."""
    Path(out).mkdir(parents=True)
    return time_building(lambda: _build(files, tokenizer, out, workers))


def _build(files: list[str], tokenizer: str, out: str, workers: int) -> int:
    builder = IndexedDatasetBuilder(f"{out}/text.bin", dtype=np.uint16)
    tokens = 0
    with multiprocessing.Pool(workers, initializer=_Encoder.start, initargs=(tokenizer,)) as pool:
        for name in files:
            with Path(name).open() as lines:
                for ids in pool.imap(_Encoder.line, lines, 32):
                    builder.add_document(ids, [len(ids)])
                    tokens += len(ids)
        pool.close()
        pool.join()
    builder.finalize(f"{out}/text.idx")
    return tokens


def prepare(plain: str, out: str) -> Figures:
    """Documents of one sequence for GPT, of one sequence for each sentence for BERT."""
    data = PlainTokens.load(plain)
    Path(out).mkdir(parents=True)
    starts = np.searchsorted(data.sentences, data.documents)
    lengths = np.diff(data.sentences)
    gpt = IndexedDatasetBuilder(f"{out}/gpt.bin", dtype=np.uint16)
    bert = IndexedDatasetBuilder(f"{out}/bert.bin", dtype=np.uint16)
    for number, (begin, end) in enumerate(zip(data.documents[:-1].tolist(), data.documents[1:].tolist(), strict=True)):
        gpt.add_document(data.tokens[begin:end], [end - begin])
        bert.add_document(data.tokens[begin:end], lengths[starts[number] : starts[number + 1]].tolist())
    gpt.finalize(f"{out}/gpt.idx")
    bert.finalize(f"{out}/bert.idx")
    return {"samples": len(_gpt(out, plain, 1024, None))}


class _Vocabulary:
    """What the datasets ask a tokenizer for; ids alone matter, so pieces are made up."""

    def __init__(self, plain: str) -> None:
        data = PlainTokens.load(plain)
        self.vocab_size = data.vocab_size
        self.inv_vocab = {token: str(token) for token in range(data.vocab_size)}
        self.eod, self.pad = data.special_ids["end_of_document"], data.special_ids["pad"]
        self.cls, self.sep = data.special_ids["classify"], data.special_ids["separator"]
        self.mask = data.special_ids["mask"]
        self.unique_identifiers = {"class": "ids"}


def _gpt(data: str, plain: str, sequence: int, samples: int | None) -> GPTDataset:
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=sequence,
        blend=([f"{data}/gpt"], None),
        split="1,0,0",
        path_to_cache=f"{data}/cache",
        tokenizer=_Vocabulary(plain),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    return BlendedMegatronDatasetBuilder(GPTDataset, [samples, 0, 0], lambda: True, config).build()[0]


def _loader(dataset: Any, batch: int, workers: int) -> DataLoader[Any]:
    sampler = BatchSampler(SequentialSampler(dataset), batch, drop_last=True)
    return DataLoader(dataset, batch_sampler=sampler, num_workers=workers)


def read(data: str, plain: str, sequence: int, batch: int, batches: int, workers: int) -> Figures:
    """Global shuffle by the index files, which an earlier start has built."""
    return time_reading(lambda: _loader(_gpt(data, plain, sequence, None), batch, workers), batches, batch)


def _bert(data: str, plain: str, sequence: int, samples: int, unit: str) -> BERTMaskedWordPieceDataset:
    if not dist.is_initialized():
        # Its index of sentences asks for the rank.
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    config = BERTMaskedWordPieceDatasetConfig(
        random_seed=1,
        sequence_length=sequence,
        blend=([f"{data}/bert"], None),
        split="1,0,0",
        path_to_cache=f"{data}/cache",
        tokenizer=_Vocabulary(plain),
        masking_probability=0.15,
        short_sequence_probability=0.0,
        masking_max_ngram=1 if unit == "token" else 3,
        masking_do_full_word=unit != "token",
        masking_do_permutation=False,
        masking_use_longer_ngrams=False,
        masking_use_geometric_distribution=False,
        classification_head=False,
    )
    return BlendedMegatronDatasetBuilder(BERTMaskedWordPieceDataset, [samples, 0, 0], lambda: True, config).build()[0]


def mask(data: str, plain: str, sequence: int, batch: int, batches: int, workers: int, unit: str) -> Figures:
    """Whole sentences of one document, masked with a seed of the sample; no pairs. Indexes as for reading."""
    return time_reading(
        lambda: _loader(_bert(data, plain, sequence, batches * batch, unit), batch, workers), batches, batch
    )


def resume(samples: int, batch: int) -> Figures:
    """The three index arrays of GPTDataset for documents of 1,000 tokens and samples of 1,024.

    Built when a data set is first used with a number of steps, and mapped from a cache of files afterwards.
    """
    from megatron.core.datasets import helpers
    from megatron.core.datasets.gpt_dataset import _build_document_index, _build_shuffle_index

    documents = samples * 1024 // 1000 + 2
    sizes = np.full(documents, 1000, dtype=np.int32)
    before = peak_memory_mib()
    start = time.perf_counter()
    state = np.random.RandomState(1)
    order = _build_document_index(np.arange(documents, dtype=np.int32), 1, state, False)
    index = helpers.build_sample_idx(sizes, order, 1024, 1, documents * 1000, True, True)
    shuffle = _build_shuffle_index(index.shape[0] - 1, index.shape[0] - 1, state)
    places = shuffle[samples // 2 : samples // 2 + batch]
    seconds = time.perf_counter() - start
    assert torch.from_numpy(index[places].astype(np.int64)).shape == (batch, 2)
    return {"seconds": seconds, "memory_mib": peak_memory_mib() - before}
