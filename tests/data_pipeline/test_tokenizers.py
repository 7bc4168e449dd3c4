from __future__ import annotations

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from data_pipeline.errors import DataError
from data_pipeline.sources import Document, read_documents
from data_pipeline.tokenizers import load_tokenizer, train_tokenizer
from data_pipeline.words import PieceTable, sentence_starts
from tests.data_pipeline.corpus_slice import write_documents, write_slice

LOSSLESS = ["sentencepiece-bpe", "sentencepiece-unigram", "bytelevel-bpe"]
KINDS = [*LOSSLESS, "wordpiece"]
TEXT = "Two  words,\n\n\n\tfour more.\r\n  中文字 naïve 🎉 <|endoftext|> <pad> <0x0A> \x00\u2581\u2581 end \u2581"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_slice(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def folders(corpus, tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    for kind in KINDS:
        train_tokenizer([str(corpus)], kind=kind, vocab_size=512, out=root / kind)
    return root


@pytest.fixture(scope="module", params=KINDS)
def trained(request, folders):
    return load_tokenizer(folders / request.param), folders / request.param, request.param


@pytest.fixture(scope="module", params=LOSSLESS)
def lossless(request, folders):
    return load_tokenizer(folders / request.param)


def test_decoding_gives_the_text_back(lossless, corpus):
    tokenizer = lossless
    for text in [TEXT, "", " ", *(document.text for document in read_documents([str(corpus)]))]:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int64
        assert tokenizer.decode(ids.tolist()) == text
        assert not set(ids.tolist()) & set(tokenizer.special_ids.values())


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n\t\u2581.中a"), max_size=60))
def test_any_text_comes_back_and_offsets_lie_in_it(lossless, text):
    tokenizer = lossless
    ids, starts = tokenizer.encode_with_offsets(text)
    assert tokenizer.decode(ids.tolist()) == text
    assert np.array_equal(ids, tokenizer.encode(text))
    data = text.encode()
    ends = [*starts[1:].tolist(), len(data)]
    for token, begin, end in zip(ids.tolist(), starts.tolist(), ends, strict=False):
        assert begin < end
        assert tokenizer.decode([token]).strip("\ufffd") in data[begin:end].decode(errors="replace")
    assert not ids.size or (starts[0] == 0 and ends[-1] > starts[-1])


IDS = {
    "sentencepiece": {"unknown": 0, "pad": 1, "end_of_document": 2, "classify": 3, "separator": 4, "mask": 5},
    "bytelevel": {"classify": 0, "pad": 1, "separator": 2, "end_of_document": 2, "unknown": 3, "mask": 4},
    "wordpiece": {"pad": 0, "unknown": 1, "classify": 2, "separator": 3, "end_of_document": 3, "mask": 4},
}


def test_every_kind_has_the_six_special_roles_and_they_have_no_text(trained):
    tokenizer, _, kind = trained
    assert tokenizer.special_ids == IDS[kind.split("-")[0]]
    assert tokenizer.vocab_size == 512
    special = set(tokenizer.special_ids.values()) - {tokenizer.special_ids["unknown"]}
    assert tokenizer.decode([*special, *tokenizer.encode("a").tolist(), *special]) == "a"


@pytest.mark.parametrize(
    "name", ["[MASK]", "<mask>", "</s>", "<s>", "[SEP]", "[CLS]", "<pad>", "<|endoftext|>", "<unk>"]
)
def test_the_name_of_a_special_id_is_text(trained, name):
    tokenizer, _, _ = trained
    for text in name, f"a {name} b", f"{name}{name}":
        found = set(tokenizer.encode(text).tolist()) | set(tokenizer.encode_with_offsets(text)[0].tolist())
        assert not found & set(tokenizer.special_ids.values())


def test_special_ids_have_the_names_that_the_libraries_know(folders):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folders / KINDS[0] / "tokenizer.model"))
    assert [processor.id_to_piece(token) for token in range(6)] == [
        "<unk>",
        "<pad>",
        "<|endoftext|>",
        "[CLS]",
        "[SEP]",
        "[MASK]",
    ]
    library = tokenizers.Tokenizer.from_file(str(folders / "wordpiece" / "tokenizer.json"))
    assert [library.id_to_token(token) for token in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    library = tokenizers.Tokenizer.from_file(str(folders / "bytelevel-bpe" / "tokenizer.json"))
    assert [library.id_to_token(token) for token in range(5)] == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def test_ids_that_mean_nothing_are_shown_as_replacement_characters(trained):
    tokenizer, _, _ = trained
    assert tokenizer.decode([512, -1, tokenizer.special_ids["unknown"]]) == "\ufffd\ufffd\ufffd"
    assert tokenizer.decode([*tokenizer.encode("a").tolist(), 512]) == "a\ufffd"


def test_training_twice_gives_the_same_bytes(trained, corpus, tmp_path):
    tokenizer, folder, kind = trained
    again = train_tokenizer([str(corpus)], kind=kind, vocab_size=512, out=tmp_path / "again")
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    assert again.identity == tokenizer.identity
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


@pytest.mark.parametrize("kind", ["bytelevel-bpe", "wordpiece"])
def test_training_in_another_process_gives_the_same_bytes(kind, corpus, folders, tmp_path):
    # The library keeps words in hash tables whose order is another one in each process.
    program = (
        "import sys; from pathlib import Path; from data_pipeline.tokenizers import train_tokenizer\n"
        "train_tokenizer([sys.argv[1]], kind=sys.argv[2], vocab_size=512, out=Path(sys.argv[3]))"
    )
    subprocess.run([sys.executable, "-c", program, corpus, kind, tmp_path / "t"], check=True)
    assert (tmp_path / "t" / "tokenizer.json").read_bytes() == (folders / kind / "tokenizer.json").read_bytes()


def test_loading_and_pickling_keep_everything(trained):
    tokenizer, folder, _ = trained
    for other in load_tokenizer(folder), pickle.loads(pickle.dumps(tokenizer)):
        assert other.identity == tokenizer.identity
        assert other.special_ids == tokenizer.special_ids
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
    with pytest.raises(DataError, match="too large"):
        train(largest + 1)
    assert train(largest).vocab_size == largest


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_too_small_names_the_size_that_works(kind, corpus, tmp_path):
    def train(size):
        return train_tokenizer([str(corpus)], kind=kind, vocab_size=size, out=tmp_path / "t")

    with pytest.raises(DataError, match=r"vocab_size=100 is too small .* at least \d+") as caught:
        train(100)
    smallest = int(str(caught.value).split("at least ")[1])
    with pytest.raises(DataError, match="too small"):
        train(smallest - 1)
    assert train(smallest).vocab_size == smallest


@pytest.mark.parametrize("kind", KINDS)
def test_empty_text_is_refused(kind, tmp_path):
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(DataError, match="no text in"):
        train_tokenizer([str(tmp_path / "blank.txt")], kind=kind, vocab_size=512, out=tmp_path / "t")


def test_wrong_options_are_refused(corpus, tmp_path):
    with pytest.raises(DataError, match=r"unknown tokenizer kind 'bpe'; use sentencepiece-bpe, .* or wordpiece"):
        train_tokenizer([str(corpus)], kind="bpe", vocab_size=512, out=tmp_path / "t")
    with pytest.raises(DataError, match="lowercase is for kind wordpiece"):
        train_tokenizer([str(corpus)], kind="bytelevel-bpe", vocab_size=512, out=tmp_path / "t", lowercase=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_line_in_the_corpus_is_named(kind, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\nbroken\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2"):
        train_tokenizer([str(tmp_path / "a.jsonl")], kind=kind, vocab_size=300, out=tmp_path / "t")


@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_draws_a_sample_by_content(kind, corpus, tmp_path):
    documents = list(read_documents([str(corpus)]))
    backwards = write_documents(tmp_path / "corpus.jsonl", documents[::-1])
    limit = sum(len(document.text) for document in documents) // 2

    def learnt(path, name, **options):
        return train_tokenizer([str(path)], kind=kind, vocab_size=400, out=tmp_path / name, **options).identity

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
    description.write_text(json.dumps({**fields, "kind": "letters"}))
    with pytest.raises(DataError, match="'letters'"):
        load_tokenizer(folder)
    description.write_text(json.dumps({**fields, "format": 1}))
    with pytest.raises(DataError, match="format 1 is not known; train it again"):
        load_tokenizer(folder)
    description.write_text(json.dumps({**fields, "special_ids": {}}))
    with pytest.raises(DataError, match="special ids"):
        load_tokenizer(folder)
    description.write_text("{")
    with pytest.raises(DataError, match=r"ptm_tokenizer\.json is damaged"):
        load_tokenizer(folder)


def words_of(tokenizer, text):
    ids, starts = tokenizer.encode_with_offsets(text)
    begins = starts[tokenizer.word_starts(ids)].tolist()
    data = text.encode()
    return [data[begin:end].decode() for begin, end in zip(begins, [*begins[1:], len(data)], strict=True)]


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
def test_words_begin_at_spaces_line_ends_punctuation_and_cjk_characters(lossless, text, words):
    assert words_of(lossless, text) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("  it is a naïve test", ["it ", "is ", "a ", "naïve ", "test"]),
        ("f(x),\ty\nz", ["f", "(", "x", ")", ",\t", "y\n", "z"]),
        ("中文 字ab", ["中", "文 ", "字", "ab"]),
        ("don't", ["don", "'", "t"]),
    ],
)
def test_words_of_word_pieces_begin_where_a_piece_does_not_go_on(folders, text, words):
    assert words_of(load_tokenizer(folders / "wordpiece"), text) == words


@pytest.mark.parametrize("cuts", [(1, 1, 1), (2, 1), (1, 2), (3,)])
def test_a_word_begins_after_a_cjk_character_however_its_bytes_are_cut(cuts):
    character, pieces = "中".encode(), [b"a", b"b", b" "]
    for length in cuts:
        pieces.append(character[sum(map(len, pieces[3:])) :][:length])
    inner = list(range(3, len(pieces)))
    table = PieceTable(pieces)
    starts = table.word_starts(np.array([0, *inner, 1, 2, *inner, *inner, 1]))
    character = [True] + [False] * (len(inner) - 1)
    assert starts.tolist() == [True, *character, True, True, *character, *character, True]


def test_a_piece_that_goes_on_a_character_and_begins_another_begins_no_word():
    table = PieceTable([b"\xe4\xb8", b"\xad\xe6\x96", b"\x87", b"x", None])
    assert table.word_starts(np.array([0, 1, 2, 3, 4, 3])).tolist() == [True, False, False, True, True, True]


def test_word_pieces_are_those_of_berts_own_python_code(folders, corpus, tmp_path):
    library = tokenizers.Tokenizer.from_file(str(folders / "wordpiece" / "tokenizer.json"))
    names = [library.id_to_token(token) for token in range(library.get_vocab_size())]
    (tmp_path / "vocab.txt").write_text("\n".join(names) + "\n")
    reference = BertTokenizerLegacy(tmp_path / "vocab.txt", do_lower_case=False)
    ours = load_tokenizer(folders / "wordpiece")
    for text in [document.text for document in read_documents([str(corpus)])] + ["中文 字ab naïve 🎉\u2581 don't\x00"]:
        assert ours.encode(text).tolist() == reference.convert_tokens_to_ids(reference.tokenize(text))


def test_lowercase_word_pieces_keep_offsets_into_the_original_text(corpus, tmp_path):
    tokenizer = train_tokenizer([str(corpus)], kind="wordpiece", vocab_size=400, out=tmp_path / "t", lowercase=True)
    assert np.array_equal(tokenizer.encode("Élan THE"), tokenizer.encode("elan the"))
    assert words_of(tokenizer, " Élan, THE ÜBER中") == ["Élan", ", ", "THE ", "ÜBER", "中"]


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
