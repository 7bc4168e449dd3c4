"""Texts encoded together, by the fastest way a tokenizer has, are what their ids and offsets say one by one."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.build.tokens import one_thread, tokenize, tokenize_batch
from data_pipeline.sources import read_documents
from data_pipeline.tokenizers import load_tokenizer, train_tokenizer
from data_pipeline.words import sentence_starts
from tests.data_pipeline.corpus_slice import write_slice

KINDS = ["sentencepiece-bpe", "sentencepiece-unigram", "bytelevel-bpe", "wordpiece", "wordpiece-lowercase"]
ODD = "\u3002\uff01\uff1f\u300d\u201d\u2019\u2026\x1c\x00\u0301\u4e2d\u6587\u017f\u0130\ufb01\u200d\u03c2\uac01\u3000"
HARD = [*"ab. .!?\n\n  \t\r\u00e9\u00f1()[]<>", *ODD, "[MASK]", "</s>", "One. Two"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_slice(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "t"
    kind, lowercase = request.param.removesuffix("-lowercase"), request.param.endswith("-lowercase")
    train_tokenizer([str(corpus)], kind=kind, vocab_size=512, out=folder, lowercase=lowercase)
    return load_tokenizer(folder)


def by_offsets(text, tokenizer):
    """Ids, first tokens of sentences and of words, from the byte at which each token starts."""
    ids, starts = tokenizer.encode_with_offsets(text)
    bytes_before = [len(text[:begin].encode()) for begin in sentence_starts(text)]
    firsts = np.unique(np.searchsorted(starts, bytes_before))
    tokens = np.append(ids, tokenizer.special_ids["end_of_document"])
    return tokens, firsts[firsts < len(ids)], tokenizer.word_starts(tokens)


def check(texts, tokenizer):
    encoded = tokenize_batch(texts, tokenizer)
    for text, found in zip(texts, encoded, strict=True):
        expected = by_offsets(text, tokenizer)
        if found is None:
            assert len(expected[0]) == 1
            continue
        for ours, theirs in zip((found.tokens, found.sentence_starts, found.word_starts), expected, strict=True):
            assert np.array_equal(ours, theirs), text


def test_real_text(tokenizer, corpus):
    check([document.text for document in read_documents([str(corpus)])], tokenizer)


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(st.lists(st.sampled_from(HARD), max_size=30).map("".join), min_size=1, max_size=8))
def test_any_text(tokenizer, texts):
    check(texts, tokenizer)


def test_a_text_without_any_id_has_no_document(corpus, tmp_path):
    train_tokenizer([str(corpus)], kind="wordpiece", vocab_size=512, out=tmp_path / "t")
    tokenizer = load_tokenizer(tmp_path / "t")
    assert [encoded is None for encoded in tokenize_batch(["a word", "\x01", "words"], tokenizer)] == [0, 1, 0]
    with pytest.raises(ValueError, match="no token stands for anything"):
        tokenize("\x01", tokenizer)


@pytest.mark.parametrize("value", [None, "true"])
def test_one_thread_leaves_the_environment_as_it_was(monkeypatch, value):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    if value:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", value)
    with one_thread():
        assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert os.environ.get("TOKENIZERS_PARALLELISM") == value
