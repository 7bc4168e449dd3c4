"""Duplicates found in parts, runs and partitions are those that a reader with a long memory would find."""

from __future__ import annotations

import random

import pytest

from data_pipeline.build import duplicates
from data_pipeline.filters import band_hashes
from data_pipeline.shards import ShardSet
from data_pipeline.sources import Document, SourceOptions, read_documents
from data_pipeline.tokenizers import train_tokenizer
from tests.data_pipeline.builds import SIDES, build, shards_and_manifests
from tests.data_pipeline.corpus_slice import write_documents, write_slice


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Paragraphs in random order, some of them again, some with a word changed."""
    draw = random.Random(3)
    corpus = write_slice(tmp_path_factory.mktemp("slice"))
    pieces = [piece for document in read_documents([str(corpus)]) for piece in document.text.split("\n\n")]
    chosen = draw.sample([piece for piece in pieces if len(piece) > 150], 80)
    same = draw.sample(chosen, 30)
    alike = [f"{text} Indeed" for text in draw.sample(chosen, 30)]
    texts = chosen + same + alike
    draw.shuffle(texts)
    return texts


@pytest.fixture(scope="module")
def corpus(texts, tmp_path_factory):
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    return write_documents(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", documents)


@pytest.fixture(scope="module")
def folder(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "t"
    train_tokenizer([str(corpus)], kind="sentencepiece-bpe", vocab_size=400, out=folder)
    return folder


def kept(out):
    """Numbers of the documents that a build kept, in the order of the text."""
    found = []
    for side in SIDES:
        shards = ShardSet.open(out / side)
        found += [int(info["id"]) for part in range(len(shards.manifest.shards)) for info in shards.infos(part)]
    return sorted(found)


def remembered(texts, *, near):
    """Numbers of the documents that come first, and how many were dropped as exact and as near duplicates."""
    seen, bands, first, exact, alike = set(), set(), [], 0, 0
    for number, text in enumerate(texts):
        own = set(band_hashes(text, 0.8).tolist()) if near else set()
        if text in seen:
            exact += 1
        elif own & bands:
            alike += 1
        else:
            first.append(number)
        seen.add(text)
        bands |= own
    return first, {name: count for name, count in (("exact_duplicate", exact), ("near_duplicate", alike)) if count}


@pytest.mark.parametrize("kind", ["exact", "near"])
@pytest.mark.parametrize("shard_bytes", [3_000, 1 << 20])
def test_what_was_there_before_is_left_out(texts, corpus, folder, tmp_path, kind, shard_bytes):
    options = {"source_options": SourceOptions(metadata_fields=("id",)), "shard_bytes": shard_bytes}
    summary = build(corpus, folder, tmp_path / "data", deduplicate=kind, **options)
    expected, counts = remembered(texts, near=kind == "near")
    assert kept(tmp_path / "data") == expected
    assert summary.counts == counts
    assert counts["exact_duplicate"] >= 30
    assert list(summary.stages) == ["hashing", "finding duplicates", "tokenising"]


def test_little_memory_finds_the_same(corpus, folder, tmp_path, monkeypatch):
    build(corpus, folder, tmp_path / "large", deduplicate="near")
    monkeypatch.setattr(duplicates, "_RUN_RECORDS", 60)
    monkeypatch.setattr(duplicates, "_PARTITION_BYTES", 1_500)
    runs, partitions = [], []
    save = duplicates._save
    monkeypatch.setattr(duplicates, "_save", lambda path, array: runs.append(path.name) or save(path, array))
    monkeypatch.setattr(duplicates.FindDuplicates, "__call__", _noting(partitions))
    build(corpus, folder, tmp_path / "small", deduplicate="near")
    assert shards_and_manifests(tmp_path / "small") == shards_and_manifests(tmp_path / "large")
    assert len(partitions) > 10
    assert len(runs) > 20


def _noting(partitions):
    find = duplicates.FindDuplicates.__call__

    def call(self, number, note):
        partitions.append(number)
        return find(self, number, note)

    return call
