"""Every family from raw text to a folder that `transformers` reads, by the commands of the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ptm_dist.checkpoint import load_model

RECIPE = """
name: tiny
run_dir: {root}/run
model: {{family: {family}, vocab_size: {vocab}, hidden_size: 32, num_layers: 2, num_heads: 4, max_positions: 32}}
data: {{path: {root}/data, tokenizer: {root}/tokenizer, sequence_length: 32, max_epochs: 4}}
objective: {{kind: {objective}}}
optimizer: {{learning_rate: 0.01}}
training: {{steps: 4, global_batch_size: 4, precision: fp32}}
layout: {{micro_batch_size: 2}}
evaluation: {{every: 2, samples: 8}}
logging: {{every: 1, tensorboard: false}}
launch: {{device: cpu}}
"""
FAMILIES = {
    "gpt1": ("causal", "bytelevel-bpe", 520, "OpenAIGPTLMHeadModel"),
    "gpt2": ("causal", "sentencepiece-bpe", 512, "GPT2LMHeadModel"),
    "bert": ("mlm_nsp", "wordpiece", 600, "BertForPreTraining"),
    "roberta": ("mlm", "bytelevel-bpe", 520, "RobertaForMaskedLM"),
    "albert": ("mlm_sop", "sentencepiece-unigram", 512, "AlbertForPreTraining"),
}
TEXT = "Return the  list.\n\n多云的天气。\tA café 😀 costs 3.50 (or so)!"


def prepare(ptm, corpus: Path, root: Path, family: str) -> Path:
    objective, kind, vocab, _ = FAMILIES[family]
    made = ptm(
        "tokenizer", "train", "--input", corpus, "--kind", kind, "--vocab-size", vocab, "--out", root / "tokenizer"
    )
    assert made.code == 0, made
    arguments = ("--input", corpus, "--tokenizer", root / "tokenizer", "--out", root / "data")
    built = ptm("data", "build", *arguments, "--validation-fraction", 0.1)
    assert built.code == 0, built
    recipe = root / "recipe.yaml"
    recipe.write_text(RECIPE.format(root=root, family=family, objective=objective, vocab=vocab))
    return recipe


@pytest.mark.parametrize("family", FAMILIES)
def test_text_becomes_a_folder_that_transformers_loads(family, ptm, prepared, tmp_path):
    transformers = pytest.importorskip("transformers")
    recipe = prepare(ptm, prepared / "corpus.jsonl", tmp_path, family)
    trained = ptm("train", recipe)
    assert trained.code == 0, trained
    exported = ptm("checkpoint", "export", tmp_path / "run", "--format", "hf", "--out", tmp_path / "hf")
    assert exported.code == 0, exported

    theirs, info = getattr(transformers, FAMILIES[family][3]).from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info[part] for part in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    from data_pipeline.tokenizers import load_tokenizer

    ids = load_tokenizer(tmp_path / "tokenizer").encode(TEXT).tolist()
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")(TEXT, add_special_tokens=False).input_ids == ids

    ours, _ = load_model(tmp_path / "run")
    inputs = torch.tensor([ids[:32]])
    with torch.no_grad():
        expected = theirs.eval()(inputs)
        logits = expected["prediction_logits" if "prediction_logits" in expected else "logits"]
        # Float32, two layers: rounding of another order of sums.
        torch.testing.assert_close(ours(inputs).tokens, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
def test_masks_are_filled_in_and_samples_are_shown(family, ptm, prepared, tmp_path):
    recipe = prepare(ptm, prepared / "corpus.jsonl", tmp_path, family)
    assert ptm("train", recipe).code == 0
    filled = ptm("fill", "--checkpoint", tmp_path / "run", "--text", "Return the [MASK] of [MASK].", "--json")
    assert filled.code == 0, filled
    for guesses in filled.json["guesses"]:
        probabilities = [probability for _, probability in guesses]
        assert len(guesses) == 5
        assert probabilities == sorted(probabilities, reverse=True)
        assert 0.0 < sum(probabilities) < 1.0
    shown = ptm("data", "show", recipe, "--step", 2)
    assert shown.code == 0, shown

    refused = ptm("generate", "--checkpoint", tmp_path / "run", "--prompt", "a")
    assert refused.code == 2
    assert "ptm fill" in refused.err


def test_mistakes_of_families_end_in_one_message_before_training(ptm, prepared, tmp_path, workspace):
    root = tmp_path / "bert"
    root.mkdir()
    bert = prepare(ptm, prepared / "corpus.jsonl", root, "bert")
    mistakes = {
        ("train", bert, "objective.kind=causal"): "does not suit model.family=bert",
        ("train", bert, "model.family=roberta", "objective.kind=mlm"): "padding id 1",
        ("train", workspace / "recipe.yaml", "objective.kind=mlm"): "does not suit model.family=gpt2",
        ("fill", "--checkpoint", workspace / "run", "--text", "nothing missing"): "no [MASK] in it",
        ("checkpoint", "export", bert, "--format", "hf", "--out", root / "hf"): "no checkpoint",
    }
    for arguments, expected in mistakes.items():
        result = ptm(*arguments)
        assert result.code == 2, (arguments, result)
        assert result.err.startswith("error: ")
        assert expected in result.err, (arguments, result.err)
        assert "Traceback" not in result.err
    assert not (root / "run" / "metrics.jsonl").exists()
    assert not (root / "hf").exists()
