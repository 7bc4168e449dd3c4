from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.sources import Document, read_documents
from data_pipeline.tokenizers import load_tokenizer, train_tokenizer
from data_pipeline.words import sentence_starts
from tests.data_pipeline.corpus_slice import write_documents, write_slice

KINDS = ["sentencepiece-bpe", "sentencepiece-unigram"]
TEXT = "Two  words,\n\n\n\tfour more.\r\n  中文字 naïve 🎉 <|endoftext|> <pad> <0x0A> \x00\u2581\u2581 end \u2581"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_slice(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module", params=KINDS)
def trained(request, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers") / request.param
    return train_tokenizer([str(corpus)], kind=request.param, vocab_size=512, out=folder), folder, request.param


@pytest.fixture(scope="module")
def bpe(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("tokenizers") / "bpe"
    return train_tokenizer([str(corpus)], kind="sentencepiece-bpe", vocab_size=512, out=out)


def test_decoding_gives_the_text_back(trained, corpus):
    tokenizer, _, _ = trained
    for text in [TEXT, "", " ", *(document.text for document in read_documents([str(corpus)]))]:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int64
        assert tokenizer.decode(ids.tolist()) == text
        assert not set(ids.tolist()) & set(tokenizer.special_ids.values())


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n\t\u2581.中a"), max_size=60))
def test_any_text_comes_back_and_offsets_lie_in_it(trained, text):
    tokenizer, _, _ = trained
    ids, starts = tokenizer.encode_with_offsets(text)
    assert tokenizer.decode(ids.tolist()) == text
    assert np.array_equal(ids, tokenizer.encode(text))
    data = text.encode()
    ends = [*starts[1:].tolist(), len(data)]
    for token, begin, end in zip(ids.tolist(), starts.tolist(), ends, strict=False):
        assert begin < end
        assert tokenizer.decode([token]).strip("\ufffd") in data[begin:end].decode(errors="replace")
    assert not ids.size or (starts[0] == 0 and ends[-1] > starts[-1])


def test_special_ids_are_unknown_pad_and_end_of_document_and_have_no_text(trained):
    tokenizer, folder, _ = trained
    assert tokenizer.special_ids == {"unknown": 0, "pad": 1, "end_of_document": 2}
    assert tokenizer.vocab_size == 512
    assert tokenizer.decode([1, *tokenizer.encode("a").tolist(), 2]) == "a"
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert processor.id_to_piece(2) == "<|endoftext|>"


def test_ids_that_mean_nothing_are_shown_as_replacement_characters(bpe):
    assert bpe.decode([512, -1, 0]) == "\ufffd\ufffd\ufffd"


def test_training_twice_gives_the_same_bytes(trained, corpus, tmp_path):
    tokenizer, folder, kind = trained
    again = train_tokenizer([str(corpus)], kind=kind, vocab_size=512, out=tmp_path / "again")
    for name in "tokenizer.model", "ptm_tokenizer.json":
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert again.identity == tokenizer.identity
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_loading_and_pickling_keep_everything(trained):
    tokenizer, folder, _ = trained
    for other in load_tokenizer(folder), pickle.loads(pickle.dumps(tokenizer)):
        assert other.identity == tokenizer.identity
        assert np.array_equal(other.encode(TEXT), tokenizer.encode(TEXT))


def test_the_same_training_is_reused_and_another_refused(corpus, tmp_path):
    def train(size, **options):
        return train_tokenizer([str(corpus)], kind=KINDS[0], vocab_size=size, out=tmp_path / "t", **options)

    first = train(400)
    written = (tmp_path / "t" / "tokenizer.model").stat().st_mtime_ns
    assert train(400).identity == first.identity
    assert (tmp_path / "t" / "tokenizer.model").stat().st_mtime_ns == written
    with pytest.raises(DataError, match="other text or options"):
        train(401)
    assert train(401, overwrite=True).vocab_size == 401
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_too_large_names_the_size_that_works(kind, tmp_path):
    path = write_documents(
        tmp_path / "small.jsonl", [Document("a", "some few words, some more words, and some others")]
    )

    def train(size):
        return train_tokenizer([str(path)], kind=kind, vocab_size=size, out=tmp_path / "t")

    with pytest.raises(DataError, match=r"vocab_size=9000 is too large .* use at most \d+") as caught:
        train(9000)
    assert not (tmp_path / "t").exists()
    largest = int(str(caught.value).split("use at most ")[1].split()[0])
    assert train(largest).vocab_size == largest


def test_a_vocabulary_too_small_names_the_size_that_works(corpus, tmp_path):
    with pytest.raises(DataError, match=r"vocab_size=100 is too small .* at least \d+") as caught:
        train_tokenizer([str(corpus)], kind=KINDS[0], vocab_size=100, out=tmp_path / "t")
    smallest = int(str(caught.value).split("at least ")[1])
    assert train_tokenizer([str(corpus)], kind=KINDS[0], vocab_size=smallest, out=tmp_path / "t").vocab_size == smallest


def test_wrong_options_and_empty_text_are_refused(corpus, tmp_path):
    with pytest.raises(DataError, match="unknown tokenizer kind 'bpe'; use sentencepiece-bpe or"):
        train_tokenizer([str(corpus)], kind="bpe", vocab_size=512, out=tmp_path / "t")
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(DataError, match="no text in"):
        train_tokenizer([str(tmp_path / "blank.txt")], kind=KINDS[0], vocab_size=512, out=tmp_path / "t")


def test_a_damaged_line_in_the_corpus_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\nbroken\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2"):
        train_tokenizer([str(tmp_path / "a.jsonl")], kind=KINDS[0], vocab_size=300, out=tmp_path / "t")


def test_a_limit_draws_a_sample_by_content(corpus, tmp_path):
    documents = list(read_documents([str(corpus)]))
    backwards = write_documents(tmp_path / "corpus.jsonl", documents[::-1])
    limit = sum(len(document.text) for document in documents) // 2

    def learnt(path, name, **options):
        train_tokenizer([str(path)], kind=KINDS[0], vocab_size=400, out=tmp_path / name, **options)
        return (tmp_path / name / "tokenizer.model").read_bytes()

    half = learnt(corpus, "half", limit_bytes=limit)
    assert half != learnt(corpus, "whole")
    assert half == learnt(backwards, "backwards", limit_bytes=limit)


def test_missing_and_damaged_folders_are_named(corpus, tmp_path):
    folder = tmp_path / "t"
    with pytest.raises(DataError, match=r"no tokenizer in .*t "):
        load_tokenizer(folder)
    train_tokenizer([str(corpus)], kind=KINDS[0], vocab_size=400, out=folder)
    model, description = folder / "tokenizer.model", folder / "ptm_tokenizer.json"
    good = model.read_bytes()
    model.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(DataError, match=r"tokenizer\.model is damaged"):
        load_tokenizer(folder)
    model.unlink()
    with pytest.raises(DataError, match=r"cannot read .*tokenizer\.model"):
        load_tokenizer(folder)
    model.write_bytes(good)
    fields = json.loads(description.read_text())
    description.write_text(json.dumps({**fields, "kind": "wordpiece"}))
    with pytest.raises(DataError, match="'wordpiece'"):
        load_tokenizer(folder)
    description.write_text(json.dumps({**fields, "special_ids": {}}))
    with pytest.raises(DataError, match="special ids"):
        load_tokenizer(folder)
    description.write_text("{")
    with pytest.raises(DataError, match=r"ptm_tokenizer\.json is damaged"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("it is a naïve test", ["it", " is", " a", " naïve", " test"]),
        ("f(x),\ty\nz", ["f", "(", "x", ")", ",", "\t", "y", "\n", "z"]),
        ("中文 字ab", ["中", "文", " ", "字", "ab"]),
        ("a🎉b", ["a", "🎉", "b"]),
        ("don't", ["don", "'", "t"]),
    ],
)
def test_words_begin_at_spaces_line_ends_punctuation_and_cjk_characters(bpe, text, words):
    ids, starts = bpe.encode_with_offsets(text)
    begins = starts[bpe.word_starts(ids)].tolist()
    data = text.encode()
    found = [data[begin:end].decode() for begin, end in zip(begins, [*begins[1:], len(data)], strict=True)]
    assert found == words


@pytest.mark.parametrize(
    "sentences",
    [
        ["One.", " Two?", " Three!", " Four"],
        ['He said "stop."', " She did not (at all).", " 3 went."],
        ["See e.g. this one, version 3.11 of it."],
        ["A title\n\n", "A paragraph\nof two lines.\n", "More.\n\n\n", "Last"],
        ["你好。", "世界\uff01", "「是。」", "Yes."],
        ["Wait...", " What?!", " Yes…", " No"],
        ["no end"],
        [""],
    ],
)
def test_sentences_begin_after_end_marks_and_blank_lines(sentences):
    text = "".join(sentences)
    starts = sentence_starts(text)
    found = [text[begin:end] for begin, end in zip(starts, [*starts[1:], len(text)], strict=True)]
    assert found == sentences
