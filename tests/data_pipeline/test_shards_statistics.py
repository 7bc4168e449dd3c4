from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.shards import Manifest, TokenizerIdentity, token_dtype, write_manifest, write_shard
from data_pipeline.shards.describe import describe
from data_pipeline.shards.statistics import PERCENTILES, statistics
from tests.data_pipeline.shard_files import document

SOURCES = [{"name": "a.jsonl", "bytes": 10}, {"name": "b.jsonl.gz", "bytes": 7}, {"name": "c.txt", "bytes": 0}]


def write(directory, shards, build):
    """Shards of documents given as (tokens, number of the source)."""
    entries = []
    for number, documents in enumerate(shards):
        written = [replace(document([7] * length), origin=origin) for length, origin in documents]
        entries.append(write_shard(directory / f"{number}.tar", f"{number}", written, token_dtype(99)))
    write_manifest(directory, entries, TokenizerIdentity("ab" * 32, 99, {"end_of_document": 7}), build)


documents = st.lists(st.tuples(st.integers(1, 70), st.integers(0, 1)), min_size=1, max_size=12)


@settings(deadline=None, max_examples=30)
@given(shards=st.lists(documents, min_size=1, max_size=3))
def test_statistics_equal_counts_of_every_document(tmp_path_factory, shards):
    directory = tmp_path_factory.mktemp("set")
    write(directory, shards, {"sources": SOURCES})
    found = statistics(directory)
    lengths = np.array([length for shard in shards for length, _ in shard])
    assert (found.documents, found.tokens) == (lengths.size, lengths.sum())
    assert (found.shortest, found.longest) == (lengths.min(), lengths.max())
    expected = np.percentile(lengths, PERCENTILES, method="inverted_cdf")
    assert found.percentiles == dict(zip(PERCENTILES, expected, strict=True))
    assert [row.low for row in found.lengths[1:]] == [row.high + 1 for row in found.lengths[:-1]]
    for row in found.lengths:
        inside = lengths[(lengths >= row.low) & (lengths <= row.high)]
        assert (row.documents, row.tokens) == (inside.size, inside.sum())
    assert sum(row.documents for row in found.lengths) == lengths.size
    given = Counter(origin for shard in shards for _, origin in shard)
    assert [source.documents for source in found.sources] == [given[0], given[1], 0]
    for number, source in enumerate(found.sources):
        assert source.name == SOURCES[number]["name"]
        assert source.tokens == sum(length for shard in shards for length, origin in shard if origin == number)


def test_statistics_read_neither_text_nor_sentences(tmp_path):
    write(tmp_path, [[(5, 0), (6, 1)]], {"sources": SOURCES})
    whole = statistics(tmp_path)
    path = tmp_path / "0.tar"
    data = path.read_bytes()
    for member in ("tokens.bin", "sents.bin"):
        place = member_of(tmp_path, member)
        data = data[: place.offset] + bytes(place.size) + data[place.offset + place.size :]
    path.write_bytes(data)
    assert statistics(tmp_path) == whole


def member_of(directory, member):
    return Manifest.load(directory).shards[0].members[member]


def test_a_source_that_the_manifest_does_not_list_is_counted_under_its_number(tmp_path):
    write(tmp_path, [[(5, 0), (6, 4)]], {"sources": SOURCES[:1]})
    assert [(source.name, source.tokens) for source in statistics(tmp_path).sources] == [
        ("a.jsonl", 5),
        *((f"source {number}, not in the manifest", 0) for number in (1, 2, 3)),
        ("source 4, not in the manifest", 6),
    ]


def test_without_a_list_of_sources_there_is_no_share_of_sources(tmp_path):
    write(tmp_path, [[(5, 0)]], {})
    assert statistics(tmp_path).sources == []


def test_a_description_says_what_the_manifest_does(tmp_path):
    write(tmp_path, [[(5, 0)], [(4, 1), (9, 0)]], {"sources": SOURCES, "rules": 3})
    found = describe(tmp_path)
    assert (found.shards, found.documents, found.tokens, found.sentences) == (2, 3, 18, 7)
    assert found.bytes == sum(path.stat().st_size for path in tmp_path.glob("*.tar"))
    assert found.sources == ["a.jsonl", "b.jsonl.gz", "c.txt"]
    assert found.build == {"rules": 3}
    assert found.token_dtype == "u16"


def test_damaged_offsets_are_not_counted(tmp_path):
    write(tmp_path, [[(5, 0), (6, 1)]], {"sources": SOURCES})
    path = tmp_path / "0.tar"
    data = bytearray(path.read_bytes())
    data[member_of(tmp_path, "docs.bin").offset + 8] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"0\.docs\.bin"):
        statistics(tmp_path)
