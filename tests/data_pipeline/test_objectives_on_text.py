"""Real text through every kind of tokenizer to every objective."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_pipeline.build import tokenize
from data_pipeline.samples import IGNORE_INDEX
from data_pipeline.samples.objectives import ObjectiveOptions, build_samples
from data_pipeline.shards import ShardSet, token_dtype, write_manifest, write_shard
from data_pipeline.sources import read_documents
from data_pipeline.tokenizers import train_tokenizer
from tests.data_pipeline.corpus_slice import write_slice

KINDS = ["sentencepiece-bpe", "sentencepiece-unigram", "bytelevel-bpe", "wordpiece"]


@pytest.fixture(scope="module", params=KINDS)
def built(request, tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp(request.param)
    corpus = str(write_slice(folder, documents=25))
    tokenizer = train_tokenizer([corpus], kind=request.param, vocab_size=700, out=folder / "tokenizer")
    texts = [document.text for document in read_documents([corpus])]
    documents = [tokenize(text, tokenizer) for text in texts]
    entry = write_shard(folder / "0.tar", "0", documents, token_dtype(tokenizer.vocab_size))
    write_manifest(folder, [entry], tokenizer.identity, {})
    return tokenizer, texts, ShardSet.open(folder)


def inside_words(text, tokenizer):
    """Which tokens of a document begin between two ASCII letters of its text, seen from its bytes alone."""
    data = text.encode()
    _, offsets = tokenizer.encode_with_offsets(text)
    inside = [0 < at < len(data) and data[at - 1 : at + 1].isalpha() for at in offsets.tolist()]
    return [*inside, False]


@pytest.mark.parametrize("unit", ["word", "ngram"])
def test_whole_words_of_the_text_are_hidden_or_none_of_their_tokens(built, unit):
    tokenizer, texts, shards = built
    samples = build_samples(shards, ObjectiveOptions("mlm", mask_unit=unit), 128, 7, "train", False)
    rows = [samples.sample(index, 0) for index in range(len(samples))]
    hidden = np.concatenate([row.labels[1 : row.length - 1] != IGNORE_INDEX for row in rows])
    starts = np.cumsum([row.length - 2 for row in rows])[:-1]
    inside = np.concatenate([inside_words(text, tokenizer) for text in texts])
    assert inside.size == hidden.size == shards.num_tokens
    inside[starts] = False  # a sentence longer than the room may be cut in a word
    places = np.flatnonzero(inside)
    assert places.size > 500
    np.testing.assert_array_equal(hidden[places], hidden[places - 1])
    assert 0.1 < hidden.mean() < 0.16


@pytest.mark.parametrize("kind", ["mlm", "mlm_nsp", "mlm_sop"])
def test_samples_without_their_masks_are_the_text(built, kind):
    tokenizer, texts, shards = built
    samples = build_samples(shards, ObjectiveOptions(kind), 128, 7, "train", False)
    ids = tokenizer.special_ids
    everything = "\0".join(tokenizer.decode(tokenizer.encode(text).tolist()) for text in texts)
    for index in range(0, len(samples), 7):
        sample = samples.sample(index, 0)
        row = np.where(sample.labels == IGNORE_INDEX, sample.inputs, sample.labels)[: sample.length]
        assert (row[0], row[-1]) == (ids["classify"], ids["separator"])
        assert ids["mask"] not in row
        for segment in {0, *sample.segments.tolist()}:
            tokens = row[sample.segments[: sample.length] == segment]
            for part in np.split(tokens, np.flatnonzero(np.isin(tokens, list(ids.values())))):
                text = tokenizer.decode(part[np.isin(part, list(ids.values()), invert=True)].tolist())
                # A text cut within a character decodes to a replacement at its ends.
                assert text.strip("\N{REPLACEMENT CHARACTER}").strip() in everything
