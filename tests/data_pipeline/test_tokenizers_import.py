from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from data_pipeline.build import tokenize
from data_pipeline.errors import DataError
from data_pipeline.sources import read_documents
from data_pipeline.tokenizers import export_tokenizer, import_tokenizer, load_tokenizer, train_tokenizer
from tests.data_pipeline.corpus_slice import write_slice

TEXT = "  Élan, don't 中文 字ab naïve\n\n\tend 🎉 "
MODEL_TYPES = ["bert", "gpt2", "roberta", "albert", "openai-gpt"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = write_slice(tmp_path_factory.mktemp("corpus"))
    return [document.text for document in read_documents([str(path)])]


@pytest.fixture(scope="module")
def hub(texts, tmp_path_factory):
    """Folders as they lie on model hubs, one for each type of model, trained without our code."""
    root = tmp_path_factory.mktemp("hub")
    for model_type in MODEL_TYPES:
        (root / model_type).mkdir()
        (root / model_type / "config.json").write_text(json.dumps({"model_type": model_type}))
    library = tokenizers.BertWordPieceTokenizer(lowercase=True)
    library.train_from_iterator(texts, vocab_size=600, show_progress=False)
    library.save_model(str(root / "bert"))
    library = tokenizers.ByteLevelBPETokenizer()
    library.train_from_iterator(texts, vocab_size=600, special_tokens=["<|endoftext|>"], show_progress=False)
    library.save_model(str(root / "gpt2"))
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    library = tokenizers.ByteLevelBPETokenizer(trim_offsets=True)
    library.train_from_iterator(texts, vocab_size=600, special_tokens=names, show_progress=False)
    library.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    library.save(str(root / "roberta" / "tokenizer.json"))
    library = tokenizers.CharBPETokenizer(suffix="</w>", bert_normalizer=True, lowercase=True)
    library.train_from_iterator(texts, vocab_size=600, special_tokens=["<unk>"], show_progress=False)
    library.save_model(str(root / "openai-gpt"))
    library = _unigram(texts)
    library.enable_truncation(16)
    library.enable_padding(pad_id=0, pad_token="<pad>", length=16)
    library.save(str(root / "albert" / "tokenizer.json"))
    settings = {"cls_token": "[CLS]", "sep_token": {"content": "[SEP]", "lstrip": False}, "unk_token": "<unk>"}
    (root / "albert" / "special_tokens_map.json").write_text(json.dumps(settings | {"pad_token": "<pad>"}))
    (root / "albert" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "mask_token": "[MASK]"})
    )
    return root


def _unigram(texts):
    library = tokenizers.Tokenizer(models.Unigram())
    library.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = tokenizers.decoders.Metaspace()
    names = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=names, unk_token="<unk>", show_progress=False)
    library.train_from_iterator(texts, trainer)
    return library


@pytest.fixture(scope="module", params=MODEL_TYPES)
def imported(request, hub, tmp_path_factory):
    out = tmp_path_factory.mktemp("imported") / request.param
    import_tokenizer(hub / request.param, out)
    return load_tokenizer(out), hub / request.param, out


def test_ids_are_those_of_autotokenizer_without_its_template(imported, texts):
    ours, folder, _ = imported
    reference = AutoTokenizer.from_pretrained(folder)
    for text in ["", " ", TEXT, *texts]:
        expected = reference(text, add_special_tokens=False, truncation=False, padding=False, verbose=False)
        assert ours.encode(text).tolist() == expected["input_ids"]
        assert ours.encode_with_offsets(text)[0].tolist() == expected["input_ids"]


ROLES = {
    "bert": {"pad": 0, "unknown": 1, "classify": 2, "separator": 3, "end_of_document": 3, "mask": 4},
    "gpt2": {"end_of_document": 0},
    "openai-gpt": {"unknown": 0},
    "roberta": {"classify": 0, "pad": 1, "separator": 2, "end_of_document": 2, "unknown": 3, "mask": 4},
    "albert": {"pad": 0, "unknown": 1, "classify": 2, "separator": 3, "end_of_document": 3, "mask": 4},
}


@pytest.mark.parametrize("model_type", ROLES)
def test_special_roles_are_found(model_type, hub, tmp_path):
    assert import_tokenizer(hub / model_type, tmp_path / "t").special_ids == ROLES[model_type]


def test_a_role_can_be_named_in_the_settings(hub, tmp_path):
    shutil.copytree(hub / "openai-gpt", tmp_path / "hub")
    (tmp_path / "hub" / "tokenizer_config.json").write_text(json.dumps({"eos_token": ".</w>"}))
    named = import_tokenizer(tmp_path / "hub", tmp_path / "t").special_ids
    vocabulary = json.loads((tmp_path / "hub" / "vocab.json").read_text())
    assert named == {"unknown": vocabulary["<unk>"], "end_of_document": vocabulary[".</w>"]}


def test_offsets_are_bytes_of_the_original_text_and_words_begin_where_they_should(imported):
    ours, folder, _ = imported
    data = TEXT.encode()
    ids, starts = ours.encode_with_offsets(TEXT)
    # A unigram model without bytes has one unknown token for several characters in a row.
    characters = ["中", "字"] if folder.name == "albert" else ["中", "文", "字"]
    assert np.all(np.diff(starts) >= 0) and starts[-1] < len(data)
    words = set(starts[ours.word_starts(ids)].tolist())
    for word in ["don", *characters, "naïve", "end"]:
        # A piece may begin with the space before its word.
        at = data.index(word.encode())
        assert {at, at - 1} & words
    assert data.index(b"nd ") not in words


def test_the_file_is_kept_byte_for_byte_and_the_folder_loads_and_pickles(imported):
    ours, folder, out = imported
    if (folder / "tokenizer.json").exists():
        assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    for other in load_tokenizer(out), pickle.loads(pickle.dumps(ours)):
        assert other.identity == ours.identity
        assert np.array_equal(other.encode(TEXT), ours.encode(TEXT))


def test_text_comes_back_as_far_as_the_model_keeps_it(imported):
    ours, folder, _ = imported
    text = "the statement, in python"
    special = [token for role, token in ours.special_ids.items() if role != "unknown"]
    back = ours.decode([*ours.encode(text).tolist(), *special])
    assert back.replace(" ,", ",").strip() == text
    if folder.name in ("gpt2", "roberta"):
        assert ours.decode(ours.encode(TEXT).tolist()) == TEXT


@pytest.mark.parametrize("name", ["[MASK]", "[SEP]", "<mask>", "</s>", "<s>", "<pad>", "<|endoftext|>"])
def test_the_name_of_a_special_token_never_becomes_its_id(imported, name):
    ours, _, _ = imported
    special = {token for role, token in ours.special_ids.items() if role != "unknown"}
    for text in name, f"one {name} two":
        assert not set(ours.encode(text).tolist()) & special
        assert len(ours.encode_with_offsets(text)[0]) == len(ours.encode(text))


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "roberta", "albert"])
def test_documents_can_be_tokenised_for_shards(model_type, hub, texts, tmp_path):
    ours = import_tokenizer(hub / model_type, tmp_path / "t")
    document = tokenize(texts[0], ours)
    assert document.tokens[-1] == ours.special_ids["end_of_document"]
    assert len(document.word_starts) == len(document.tokens)


def test_an_imported_tokenizer_is_exported_with_the_same_ids(hub, tmp_path):
    ours = import_tokenizer(hub / "roberta", tmp_path / "t")
    export_tokenizer(tmp_path / "t", tmp_path / "out", "roberta", 512)
    exported = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert exported(TEXT)["input_ids"] == [0, *ours.encode(TEXT).tolist(), 2]
    import_tokenizer(hub / "gpt2", tmp_path / "gpt")
    with pytest.raises(DataError, match="no classify and no mask and no pad and no separator id, which bert needs"):
        export_tokenizer(tmp_path / "gpt", tmp_path / "bert", "bert", 512)


def test_an_export_of_ours_comes_back_with_the_same_ids(texts, tmp_path):
    path = write_slice(tmp_path)
    ours = train_tokenizer([str(path)], kind="sentencepiece-unigram", vocab_size=500, out=tmp_path / "t")
    export_tokenizer(tmp_path / "t", tmp_path / "hf", "albert", 512)
    back = import_tokenizer(tmp_path / "hf", tmp_path / "back")
    # Albert's end of sequence is its separator.
    assert back.special_ids == ours.special_ids | {"end_of_document": ours.special_ids["separator"]}
    for text in [TEXT, *texts]:
        ids = ours.encode(text)
        assert np.array_equal(back.encode(text), ids)
        assert np.array_equal(back.word_starts(ids), ours.word_starts(ids))
        assert back.decode(ids.tolist()) == text


def test_folders_that_cannot_be_read_are_named(hub, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no tokenizer in .*empty: it needs tokenizer\.json"):
        import_tokenizer(tmp_path / "empty", tmp_path / "t")
    (tmp_path / "empty" / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(DataError, match="not a tokenizer that can be read"):
        import_tokenizer(tmp_path / "empty", tmp_path / "t")
    (tmp_path / "empty" / "tokenizer_config.json").write_text("[")
    with pytest.raises(DataError, match=r"tokenizer_config\.json is damaged"):
        import_tokenizer(tmp_path / "empty", tmp_path / "t")
    import_tokenizer(hub / "bert", tmp_path / "t")
    with pytest.raises(DataError, match="already exists"):
        import_tokenizer(hub / "gpt2", tmp_path / "t")
    assert import_tokenizer(hub / "gpt2", tmp_path / "t", overwrite=True).special_ids == ROLES["gpt2"]
