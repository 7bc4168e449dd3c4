"""``OpenAIGPTLMHeadModel`` (GPT-1) and ``GPT2LMHeadModel`` (GPT-2, and GPT-3 where all its layers are dense)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ptm_dist.models.hf.counterpart import Counterpart, unshared
from ptm_dist.models.hf.keys import KeyTable
from ptm_dist.models.hf.settings import ACTIVATION_NAMES, ACTIVATIONS, Settings, token_id
from ptm_dist.models.spec import Activation, ModelSpec
from ptm_dist.recipe.schema import Family, ModelSection

_PARTS = {
    "attention_norm": ("ln_1",),
    "attention.qkv": ("attn.c_attn",),
    "attention.output": ("attn.c_proj",),
    "ffn_norm": ("ln_2",),
    "ffn.up": ("mlp.c_fc",),
    "ffn.down": ("mlp.c_proj",),
}
_DEFAULTS = {"layer_norm_epsilon": 1e-5, "initializer_range": 0.02, "tie_word_embeddings": True}

# OpenAIGPT calls the tanh approximation "gelu", unlike every other class.
_OPENAI_ACTIVATIONS = {"gelu": Activation.GELU_TANH}


def _shape(section: ModelSection, spec: ModelSpec, special_ids: Mapping[str, int]) -> dict[str, Any]:
    end = token_id(special_ids, "end_of_document")
    return {
        "n_positions": spec.embedding.max_positions,
        "n_embd": spec.block.hidden_size,
        "n_layer": spec.num_layers,
        "n_head": spec.block.num_heads,
        "layer_norm_epsilon": spec.block.layer_norm_eps,
        "initializer_range": section.initializer_std,
        # Documents follow each other in training: the end of one is where the next one starts.
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": token_id(special_ids, "pad"),
        "resid_pdrop": spec.dropout,
        "embd_pdrop": spec.dropout,
        "attn_pdrop": spec.attention_dropout,
    }


def _section(settings: Settings, family: Family) -> dict[str, Any]:
    return {
        "family": family,
        "max_positions": settings["n_positions"],
        "hidden_size": settings["n_embd"],
        "num_layers": settings["n_layer"],
        "num_heads": settings["n_head"],
        "layer_norm_eps": settings["layer_norm_epsilon"],
        "initializer_std": settings["initializer_range"],
    }


def _write_gpt1(section: ModelSection, spec: ModelSpec, special_ids: Mapping[str, int]) -> dict[str, Any]:
    return {**_shape(section, spec, special_ids), "afn": "gelu"}


def _read_gpt1(settings: Settings) -> dict[str, Any]:
    activation = settings.activation("afn", _OPENAI_ACTIVATIONS)
    return {**_section(settings, Family.GPT1), "activation": activation}


def _objections_gpt1(spec: ModelSpec) -> list[str]:
    found = _objections(spec)
    if spec.block.activation is not Activation.GELU_TANH:
        found.append("OpenAIGPTLMHeadModel knows GELU by its tanh approximation only (model.activation: gelu_tanh)")
    if spec.block.ffn_hidden_size != 4 * spec.block.hidden_size:
        found.append(
            f"OpenAIGPTLMHeadModel has feed-forward layers of width 4 * hidden_size, not "
            f"model.ffn_hidden_size={spec.block.ffn_hidden_size}"
        )
    return found


def _write_gpt2(section: ModelSection, spec: ModelSpec, special_ids: Mapping[str, int]) -> dict[str, Any]:
    return {
        **_shape(section, spec, special_ids),
        "n_inner": spec.block.ffn_hidden_size,
        "activation_function": ACTIVATION_NAMES[spec.block.activation],
    }


def _read_gpt2(settings: Settings) -> dict[str, Any]:
    settings.expect("scale_attn_weights", [True])
    settings.expect("scale_attn_by_inverse_layer_idx", [False])
    settings.expect("add_cross_attention", [False])
    return {
        **_section(settings, Family.GPT2),
        "ffn_hidden_size": settings["n_inner"],
        "activation": settings.activation("activation_function", ACTIVATIONS),
    }


def _objections(spec: ModelSpec) -> list[str]:
    found = unshared(spec)
    if spec.attention_band:
        found.append(
            f"every second layer looks back on {spec.attention_band} positions only, and transformers has no GPT-2 "
            "with banded attention; a model trained with model.attention_band=0 can be exported"
        )
    return found


OPENAI_GPT = Counterpart(
    model_class="OpenAIGPTLMHeadModel",
    relatives=("OpenAIGPTModel",),
    model_type="openai-gpt",
    tokenizer_family="gpt",
    keys=KeyTable(
        prefix="transformer",
        outer={
            "embeddings.token": "transformer.tokens_embed",
            "embeddings.position": "transformer.positions_embed",
            "head.decoder": "lm_head",
        },
        block="transformer.h.{}",
        parts=_PARTS,
        conv1d=True,
        tied={"lm_head.weight": "transformer.tokens_embed.weight"},
    ),
    defaults={**_DEFAULTS, "afn": "gelu"},
    write=_write_gpt1,
    read=_read_gpt1,
    objections=_objections_gpt1,
)

GPT2 = Counterpart(
    model_class="GPT2LMHeadModel",
    relatives=("GPT2Model",),
    model_type="gpt2",
    tokenizer_family="gpt",
    keys=KeyTable(
        prefix="transformer",
        outer={
            "embeddings.token": "transformer.wte",
            "embeddings.position": "transformer.wpe",
            "head.norm": "transformer.ln_f",
            "head.decoder": "lm_head",
        },
        block="transformer.h.{}",
        parts=_PARTS,
        conv1d=True,
        tied={"lm_head.weight": "transformer.wte.weight"},
    ),
    defaults={
        **_DEFAULTS,
        "n_inner": None,
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    write=_write_gpt2,
    read=_read_gpt2,
    objections=_objections,
)
