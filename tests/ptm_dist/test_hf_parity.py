"""Every family against its class in transformers: predictions, losses, all gradients, names and shapes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ptm_dist.errors import CheckpointError, RecipeError
from ptm_dist.models.hf import from_hf, hf_config, model_section, tensor_pairs, to_hf
from ptm_dist.recipe.schema import Family, ModelSection
from tests.ptm_dist.hf_models import (
    ONE_PER_CLASS,
    SECTIONS,
    SPECIAL_IDS,
    Problem,
    our_model,
    relative_error,
    their_model,
)

pytest.importorskip("transformers")

# Rounding: 2**-53 and 2**-24 per operation, a few hundred operations deep; gradients pass through twice as many,
# and sum over all positions.
GATES = {torch.float64: (1e-12, 1e-12), torch.float32: (2e-6, 5e-6)}


# OpenAIGPTLMHeadModel has one implementation of attention.
IMPLEMENTATIONS = [(case, "eager") for case in SECTIONS]
IMPLEMENTATIONS += [(case, "sdpa") for case, section in SECTIONS.items() if section.family is not Family.GPT1]


@pytest.mark.parametrize("dtype", GATES, ids=str)
@pytest.mark.parametrize(("case", "implementation"), IMPLEMENTATIONS)
def test_logits_losses_and_every_gradient_equal_those_of_transformers(case, dtype, implementation):
    section = SECTIONS[case]
    forward_gate, gradient_gate = GATES[dtype]
    ours = our_model(section, dtype)
    theirs = their_model(ours, section, attn_implementation=implementation)
    problem = Problem.of(section)

    our_logits, their_logits = problem.ours(ours), problem.theirs(theirs)
    for ours_part, theirs_part in zip(our_logits, their_logits, strict=True):
        assert (ours_part is None) == (theirs_part is None)
        assert ours_part is None or relative_error(ours_part, theirs_part) < forward_gate
    # Their own loss of a causal model is computed in float32 whatever the model: take it from their logits.
    losses = [problem.loss(*logits) for logits in (our_logits, their_logits)]
    assert relative_error(losses[0], losses[1]) < forward_gate
    for loss in losses:
        loss.backward()

    # Compared whole, in our layout: the gradient of the key's bias alone is zero up to rounding.
    leftover = {name: torch.zeros_like(p) for name, p in theirs.named_parameters() if p.grad is None}
    assert all(name.endswith(("predictions.bias", "lm_head.bias")) for name in leftover)
    expected = from_hf(
        {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None} | leftover, section
    )
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert relative_error(gradient, expected[name]) < gradient_gate, name


@pytest.mark.parametrize("case", ONE_PER_CLASS)
def test_the_loss_that_transformers_computes_itself_is_ours(case):
    section = SECTIONS[case]
    ours = our_model(section)
    theirs = their_model(ours, section)
    problem = Problem.of(section)
    expected = problem.their_output(theirs, **problem.their_labels(theirs)).loss
    tokens, pairs = problem.ours(ours)
    if problem.positions is None:
        found = F.cross_entropy(tokens.view(3, -1, 101)[:, :-1].flatten(0, 1), problem.ids[:, 1:].flatten())
    else:
        found = problem.loss(tokens, pairs)
    assert relative_error(found, expected) < 2e-6


@pytest.mark.parametrize("case", SECTIONS)
def test_names_and_layouts_translate_back_to_the_same_bits(case):
    section = SECTIONS[case]
    ours = our_model(section)
    weights = {name: p.detach() for name, p in ours.named_parameters()}
    there = to_hf(weights, section)
    back = from_hf(there, section)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)

    theirs = dict(their_model(ours, section).named_parameters())
    assert there.keys() == theirs.keys()
    again = to_hf(from_hf({name: p.detach() for name, p in theirs.items()}, section), section)
    assert all(torch.equal(again[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("case", SECTIONS)
def test_tensors_translate_one_by_one_as_all_together(case):
    section = SECTIONS[case]
    weights = {name: p.detach() for name, p in our_model(section).named_parameters()}
    together = to_hf(weights, section)
    for pair in tensor_pairs(section):
        one = pair.to_theirs(weights[pair.ours])
        assert all(torch.equal(one[name], together[name]) and one[name].is_contiguous() for name in one)
        assert torch.equal(pair.to_ours(together), weights[pair.ours])


@pytest.mark.parametrize("case", SECTIONS)
def test_a_configuration_reads_back_as_the_same_section(case):
    section = SECTIONS[case]
    expected = section
    if section.family is Family.GPT3:
        expected = section.model_copy(update={"family": Family.GPT2, "attention_band": None})
    assert model_section(hf_config(section, SPECIAL_IDS)) == expected


@pytest.mark.parametrize("case", ONE_PER_CLASS)
def test_a_configuration_that_transformers_writes_reads_as_the_same_section(case):
    section = SECTIONS[case]
    written = their_model(our_model(section), section).config.to_dict()
    assert model_section(written | {"architectures": hf_config(section, {})["architectures"]}) == section


@pytest.mark.parametrize("case", ONE_PER_CLASS)
def test_figures_that_are_unusual_for_a_family_are_kept(case):
    unusual = SECTIONS[case].model_copy(update={"layer_norm_eps": 1e-3, "initializer_std": 0.07, "max_positions": 5})
    assert model_section(hf_config(unusual, SPECIAL_IDS)) == unusual


@pytest.mark.parametrize("case", ONE_PER_CLASS)
def test_keys_that_a_configuration_leaves_out_mean_what_transformers_means(case):
    import transformers

    if case.startswith("gpt"):
        needed = {"vocab_size": 101, "n_positions": 17, "n_embd": 36, "n_layer": 2, "n_head": 3}
    else:
        shape = {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 50}
        needed = {"vocab_size": 101, "max_position_embeddings": 17, **shape}
        needed |= {"type_vocab_size": 1} if case == "roberta" else {}
    name = hf_config(SECTIONS[case], {})["architectures"]
    filled = getattr(transformers, name[0]).config_class(**needed).to_dict()
    assert model_section({"architectures": name, **needed}) == model_section(filled | {"architectures": name})


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"family": "gpt3"}, "banded attention.*model.attention_band=0"),
        ({"family": "gpt1", "activation": "gelu_erf"}, "tanh approximation only"),
        ({"family": "gpt1", "ffn_hidden_size": 50}, "width 4"),
        ({"family": "gpt2", "layer_groups": 1}, "only AlbertForPreTraining"),
        ({"family": "bert", "layer_groups": 1}, "only AlbertForPreTraining"),
        ({"family": "bert", "embedding_size": 20}, "only AlbertForPreTraining"),
        ({"family": "roberta", "activation": "gelu_tanh"}, "exactly"),
        ({"family": "albert", "embedding_size": 36}, "always has a matrix"),
    ],
)
def test_a_model_that_no_class_can_hold_is_refused_with_the_reason(values, reason):
    section = ModelSection.model_validate(
        {"vocab_size": 101, "hidden_size": 36, "num_layers": 2, "num_heads": 3, **values}
    )
    with pytest.raises(RecipeError, match=reason):
        hf_config(section, SPECIAL_IDS)


def test_roberta_with_another_padding_id_is_refused():
    with pytest.raises(RecipeError, match="padding id"):
        hf_config(SECTIONS["roberta"], {"pad": 0})


@pytest.mark.parametrize(
    ("case", "change", "reason"),
    [
        ("gpt2", {"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM, which cannot be imported; use"),
        ("gpt2", {"architectures": None, "model_type": "t5"}, "model_type 't5'"),
        ("gpt2", {"activation_function": "relu"}, "activation_function='relu'.*'gelu'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ("gpt2", {"n_head": 5}, "num_heads=5 does not divide"),
        ("gpt2", {"vocab_size": -1}, "vocab_size=-1"),
        ("gpt1", {"afn": "relu"}, "afn='relu'"),
        ("bert-tanh", {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ("bert-tanh", {"is_decoder": True}, "is_decoder=True"),
        ("bert-tanh", {"type_vocab_size": 1}, "type_vocab_size=1"),
        ("roberta", {"pad_token_id": 0}, "pad_token_id=0"),
        ("roberta", {"hidden_act": "gelu_new"}, "hidden_act='gelu_new'"),
        ("albert-tanh", {"inner_group_num": 2}, "inner_group_num=2"),
        ("albert-tanh", {"num_hidden_groups": 3}, "num_hidden_groups=3"),
        ("albert-tanh", {"embedding_size": 36}, "embedding_size=36"),
        ("albert-tanh", {"num_hidden_layers": "many"}, "config.json contradicts itself"),
        ("roberta", {"max_position_embeddings": 2}, "max_positions=0"),
        ("bert-tanh", {"num_hidden_layers": "many"}, "num_layers='many'"),
    ],
)
def test_a_configuration_that_no_family_has_is_refused_with_the_key(case, change, reason):
    with pytest.raises(CheckpointError, match=reason):
        model_section({**hf_config(SECTIONS[case], SPECIAL_IDS), **change})


def test_a_configuration_without_a_needed_key_names_it():
    config = hf_config(SECTIONS["bert-tanh"], SPECIAL_IDS)
    del config["num_hidden_layers"]
    with pytest.raises(CheckpointError, match="lacks num_hidden_layers"):
        model_section(config)
