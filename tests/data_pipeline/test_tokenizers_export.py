from __future__ import annotations

import json
import random

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from data_pipeline.errors import DataError
from data_pipeline.sources import read_documents
from data_pipeline.tokenizers import FAMILIES, TRAINED_KINDS, export_tokenizer, load_tokenizer, train_tokenizer
from data_pipeline.tokenizers.sentence_piece import model_proto
from tests.data_pipeline.corpus_slice import write_slice

MODEL_TYPES = {"gpt": ["gpt2", "openai-gpt"], "bert": ["bert"], "roberta": ["roberta"], "albert": ["albert"]}
TEXTS = [
    "",
    " ",
    "Two  words,\n\n\n\tfour more.\r\n  中文字 naïve 🎉\x00\u2028 end ",
    "   leading and trailing   \n",
    "\u2581\u2581a \u2581b\u2581",
    "[MASK] <mask></s><s> [CLS]x[SEP]<|endoftext|><pad> <unk><0x41><0x0A>",
    "\t\n\n\n\n\t \n \n",
    "=" * 3001 + " " * 2500 + "x" + "-=" * 700,
    "语言模型。" * 900,
    "no-break\u00a0space, family 👩\u200d👩\u200d👧, e\u0301 שלום สวัสดี",
]
CHARACTERS = st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n\t\u2581.中a<>[]=")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_slice(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def folders(corpus, tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    for kind in TRAINED_KINDS:
        train_tokenizer([str(corpus)], kind=kind, vocab_size=700, out=root / kind)
    return root


@pytest.fixture(scope="module", params=TRAINED_KINDS)
def folder(request, folders):
    return folders / request.param


@pytest.fixture(scope="module")
def plain_pair(folder, tmp_path_factory):
    """Our tokenizer, and AutoTokenizer's that takes the names of special tokens for text."""
    out = tmp_path_factory.mktemp("exported")
    export_tokenizer(folder, out, "bert", 512)
    return load_tokenizer(folder), AutoTokenizer.from_pretrained(out, split_special_tokens=True)


def plain_ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def test_ids_are_ours_on_real_and_on_odd_text(plain_pair, corpus):
    ours, exported = plain_pair
    pieces = [*TEXTS, *(document.text for document in read_documents([str(corpus)]))]
    pieces += ["".join(random.Random(seed).choices(pieces, k=4)) for seed in range(20)]
    for text in pieces:
        assert plain_ids(exported, text) == ours.encode(text).tolist()


@settings(max_examples=300, deadline=None)
@given(text=st.text(CHARACTERS, max_size=60))
def test_ids_are_ours_on_any_text(plain_pair, text):
    ours, exported = plain_pair
    assert plain_ids(exported, text) == ours.encode(text).tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("with_config", [False, True])
def test_every_family_of_models_gets_the_same_ids(folder, family, with_config, tmp_path):
    ours = load_tokenizer(folder)
    for model_type in MODEL_TYPES[family]:
        out = tmp_path / model_type
        export_tokenizer(folder, out, family, 128)
        if with_config:
            (out / "config.json").write_text(json.dumps({"model_type": model_type}))
        exported = AutoTokenizer.from_pretrained(out)
        assert exported.model_max_length == 128
        assert len(exported) == ours.vocab_size
        for text in TEXTS:
            if "[MASK]" not in text:
                assert plain_ids(exported, text) == ours.encode(text).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_stand_where_the_family_has_them(folder, family, tmp_path):
    ours = load_tokenizer(folder)
    export_tokenizer(folder, tmp_path, family, 512)
    exported = AutoTokenizer.from_pretrained(tmp_path)
    first, second = "A question?", "The answer."
    a, b = ours.encode(first).tolist(), ours.encode(second).tolist()
    cls, sep = ours.special_ids["classify"], ours.special_ids["separator"]
    end = [sep, sep] if family == "roberta" else [sep]
    single, pair = ([cls, *a, sep], [cls, *a, *end, *b, sep]) if family != "gpt" else (a, [*a, *b])
    assert exported(first)["input_ids"] == single
    encoded = exported(first, second)
    assert encoded["input_ids"] == pair
    if family in ("bert", "albert"):
        assert encoded["token_type_ids"] == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    else:
        assert "token_type_ids" not in encoded


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_have_the_ids_of_our_roles(folder, family, tmp_path):
    ids = load_tokenizer(folder).special_ids
    export_tokenizer(folder, tmp_path, family, 512)
    exported = AutoTokenizer.from_pretrained(tmp_path)
    assert (exported.pad_token_id, exported.unk_token_id) == (ids["pad"], ids["unknown"])
    if family == "gpt":
        assert exported.bos_token_id == exported.eos_token_id == ids["end_of_document"]
    else:
        roles = [ids[role] for role in ("classify", "separator", "mask")]
        assert [exported.cls_token_id, exported.sep_token_id, exported.mask_token_id] == roles


def test_the_name_of_the_mask_in_a_text_stands_for_a_word_and_its_space(folder, tmp_path):
    ours = load_tokenizer(folder)
    export_tokenizer(folder, tmp_path, "roberta", 512)
    exported = AutoTokenizer.from_pretrained(tmp_path)
    text = f"This is a {exported.mask_token}, not it."
    masked = [*ours.encode("This is a").tolist(), ours.special_ids["mask"], *ours.encode(", not it.").tolist()]
    assert plain_ids(exported, text) == masked


@pytest.mark.parametrize("kind", [kind for kind in TRAINED_KINDS if kind != "wordpiece"])
def test_an_exported_tokenizer_decodes_to_the_text(kind, folders, tmp_path):
    export_tokenizer(folders / kind, tmp_path, "gpt", 512)
    exported = AutoTokenizer.from_pretrained(tmp_path, split_special_tokens=True)
    for text in TEXTS:
        assert exported.decode(plain_ids(exported, text)) == text


def test_unigram_ids_of_a_line_are_those_of_sentencepiece_and_sums_of_scores_stay_exact(folders, corpus):
    folder = folders / "sentencepiece-unigram"
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    ours = load_tokenizer(folder)
    for document in read_documents([str(corpus)]):
        for line in document.text.split("\n"):
            assert ours.encode(line).tolist() == processor.encode(line)
    scores = [piece.score for piece in model_proto((folder / "tokenizer.model").read_bytes()).pieces if piece.type == 1]
    assert all((score * 256).is_integer() and -54 < score < 0 for score in scores)


def test_ids_of_pieces_that_overlap_themselves_are_ours(tmp_path):
    # Merges of runs and periods are where implementations of BPE could take another pair first.
    generator = random.Random(5)
    lines = ["".join(generator.choices(["ab", "a", "ba", "==", "=", "-=", " ", "  "], k=40)) for _ in range(400)]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    ours = train_tokenizer([str(path)], kind="sentencepiece-bpe", vocab_size=450, out=tmp_path / "t")
    export_tokenizer(tmp_path / "t", tmp_path / "exported", "gpt", 512)
    exported = AutoTokenizer.from_pretrained(tmp_path / "exported")
    for _ in range(1500):
        text = "".join(generator.choices("ab=- ", weights=[4, 3, 3, 1, 2], k=80))
        assert plain_ids(exported, text) == ours.encode(text).tolist()


def test_what_cannot_be_exported_is_refused(folders, tmp_path):
    with pytest.raises(DataError, match="unknown model family 'bort'; use gpt, bert, roberta or albert"):
        export_tokenizer(folders / "wordpiece", tmp_path / "out", "bort", 512)
    with pytest.raises(DataError, match="max_positions=0"):
        export_tokenizer(folders / "wordpiece", tmp_path / "out", "bert", 0)
    with pytest.raises(DataError, match="no tokenizer in"):
        export_tokenizer(tmp_path / "none", tmp_path / "out", "bert", 512)
    assert not (tmp_path / "out").exists()
