from __future__ import annotations

from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.samples.chunks import document_chunks, full_sentences
from tests.data_pipeline.shard_files import counting_prose, random_prose, starts_word

documents = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=6), min_size=1, max_size=5)
shard_sets = st.lists(documents, min_size=1, max_size=3)


def cut(begin, end, limit):
    """Pieces of one sentence, in plain Python: before the last word that fits, or else where the room ends."""
    pieces = []
    while end - begin > limit:
        words = [p for p in range(begin + 1, begin + limit + 1) if starts_word(np.array(p))]
        stop = words[-1] if words else begin + limit
        pieces.append((begin, stop))
        begin = stop
    return [*pieces, (begin, end)]


def filled(pieces, room):
    """Pieces joined as far as they fit, [(number of pieces, begin, end)]."""
    chunks = []
    for begin, end in pieces:
        if chunks and end - chunks[-1][1] <= room:
            chunks[-1] = (chunks[-1][0] + 1, chunks[-1][1], end)
        else:
            chunks.append((1, begin, end))
    return chunks


def sentences_of(documents, first, *, ends):
    """(begin, end) of the sentences of each document, with its end-of-document id or without."""
    result = []
    for lengths in documents:
        bounds = np.cumsum([first, *lengths]).tolist()
        first = bounds[-1] + 1
        bounds[-1] += ends
        result.append(list(pairwise(bounds)))
    return result


def size_of(documents):
    return sum(sum(lengths) + 1 for lengths in documents)


@settings(deadline=None, max_examples=80)
@given(shards=shard_sets, room=st.integers(1, 30))
def test_full_sentences_are_those_found_by_walking_from_sentence_to_sentence(tmp_path_factory, shards, room):
    expected, first = [], 0
    for documents in shards:
        sentences = list(chain.from_iterable(sentences_of(documents, first, ends=True)))
        expected += filled([piece for sentence in sentences for piece in cut(*sentence, room)], room)
        first += size_of(documents)
    starts = full_sentences(counting_prose(tmp_path_factory.mktemp("shards"), shards), room)
    assert starts.tolist() == [begin for _, begin, _ in expected] + [first]
    assert max(np.diff(starts)) <= room


@settings(deadline=None, max_examples=80)
@given(shards=shard_sets, room=st.integers(2, 30))
def test_document_chunks_are_those_found_by_walking_from_sentence_to_sentence(tmp_path_factory, shards, room):
    expected, first, number, left_out = [], 0, 0, 0
    for documents in shards:
        for sentences in sentences_of(documents, first, ends=False):
            pieces = [piece for sentence in sentences for piece in cut(*sentence, room // 2)]
            chunks = filled(pieces, room)
            if len(pieces) == 1:
                chunks, left_out = [], left_out + 1
            elif chunks[-1][0] == 1:
                chunks[-1] = (2, pieces[-2][0], chunks[-1][2])
            expected += [(begin, end - begin, number) for _, begin, end in chunks]
            number += 1
        first += size_of(documents)
    found = document_chunks(counting_prose(tmp_path_factory.mktemp("shards"), shards), room)
    assert list(zip(found.begins.tolist(), found.lengths.tolist(), found.documents.tolist(), strict=True)) == expected
    assert (len(found), found.left_out) == (len(expected), left_out)


@pytest.fixture(scope="module")
def prose(tmp_path_factory):
    shards = [random_prose(60, seed=seed) for seed in range(3)]
    return counting_prose(tmp_path_factory.mktemp("prose"), shards), shards


def test_chunks_of_real_sizes_lie_in_one_document_without_its_end(prose):
    shards, lengths = prose
    chunks = document_chunks(shards, 125)
    starts = shards.document_starts(0, shards.num_tokens)
    ends = np.append(starts[1:], shards.num_tokens)
    np.testing.assert_array_equal(np.searchsorted(starts, chunks.begins, side="right") - 1, chunks.documents)
    assert (chunks.begins + chunks.lengths < ends[chunks.documents]).all()
    assert chunks.lengths.min() >= 2
    assert chunks.lengths.max() <= 125
    covered = np.zeros(shards.num_tokens, dtype=int)
    for begin, length in zip(chunks.begins, chunks.lengths, strict=True):
        covered[begin : begin + length] += 1
    # All text but the documents left out and the document ends is in a chunk, and in two only before a short tail.
    assert (covered == 0).sum() - shards.num_documents == sum(
        sum(document) for shard in lengths for document in shard if len(document) == 1 and document[0] <= 62
    )
    assert covered.max() <= 2
    assert chunks.left_out == sum(len(document) == 1 and document[0] <= 62 for shard in lengths for document in shard)


def test_siblings_are_the_chunks_of_the_same_document(prose):
    chunks = document_chunks(prose[0], 60)
    first, last = chunks.siblings(np.arange(len(chunks)))
    for number in range(len(chunks)):
        expected = np.flatnonzero(chunks.documents == chunks.documents[number])
        assert list(range(first[number], last[number])) == expected.tolist()


def test_an_index_takes_16_bytes_a_pair_and_8_a_sample_of_full_sentences(prose):
    chunks = document_chunks(prose[0], 125)
    assert chunks.begins.nbytes + chunks.lengths.nbytes + chunks.documents.nbytes == 16 * len(chunks)
    assert full_sentences(prose[0], 126).itemsize == 8
