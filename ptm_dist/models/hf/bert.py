"""``BertForPreTraining``, and what the encoders after it share with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ptm_dist.models.hf.counterpart import Counterpart, unshared
from ptm_dist.models.hf.keys import KeyTable
from ptm_dist.models.hf.settings import ACTIVATION_NAMES, ACTIVATIONS, Settings, token_id
from ptm_dist.models.spec import ModelSpec
from ptm_dist.recipe.schema import Family, ModelSection

ENCODER_PARTS = {
    "attention_norm": ("attention.output.LayerNorm",),
    "attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output": ("attention.output.dense",),
    "ffn_norm": ("output.LayerNorm",),
    "ffn.up": ("intermediate.dense",),
    "ffn.down": ("output.dense",),
}
ENCODER_DEFAULTS = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
    "type_vocab_size": 2,
    "tie_word_embeddings": True,
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


def embedding_names(prefix: str) -> dict[str, str]:
    """Their embeddings by ours, the same in all encoders."""
    return {
        "embeddings.token": f"{prefix}.embeddings.word_embeddings",
        "embeddings.position": f"{prefix}.embeddings.position_embeddings",
        "embeddings.segment": f"{prefix}.embeddings.token_type_embeddings",
        "embeddings.norm": f"{prefix}.embeddings.LayerNorm",
    }


def write_encoder(section: ModelSection, spec: ModelSpec, special_ids: Mapping[str, int]) -> dict[str, Any]:
    """What ``config.json`` of every encoder holds."""
    return {
        "hidden_size": spec.block.hidden_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.block.num_heads,
        "intermediate_size": spec.block.ffn_hidden_size,
        "hidden_act": ACTIVATION_NAMES[spec.block.activation],
        "max_position_embeddings": spec.embedding.max_positions + spec.embedding.position_offset,
        "type_vocab_size": spec.embedding.segments,
        "layer_norm_eps": spec.block.layer_norm_eps,
        "initializer_range": section.initializer_std,
        "pad_token_id": token_id(special_ids, "pad"),
        "hidden_dropout_prob": spec.dropout,
        "attention_probs_dropout_prob": spec.attention_dropout,
    }


def read_encoder(settings: Settings, family: Family) -> dict[str, Any]:
    """What a model section takes from ``config.json`` of every encoder."""
    settings.expect("position_embedding_type", ["absolute"])
    settings.expect("is_decoder", [False])
    settings.expect("add_cross_attention", [False])
    return {
        "family": family,
        "max_positions": settings["max_position_embeddings"],
        "hidden_size": settings["hidden_size"],
        "num_layers": settings["num_hidden_layers"],
        "num_heads": settings["num_attention_heads"],
        "ffn_hidden_size": settings["intermediate_size"],
        "activation": settings.activation("hidden_act", ACTIVATIONS),
        "layer_norm_eps": settings["layer_norm_eps"],
        "initializer_std": settings["initializer_range"],
    }


def _read(settings: Settings) -> dict[str, Any]:
    settings.expect("type_vocab_size", [2])
    return read_encoder(settings, Family.BERT)


BERT = Counterpart(
    model_class="BertForPreTraining",
    relatives=("BertModel", "BertForMaskedLM", "BertForNextSentencePrediction"),
    model_type="bert",
    tokenizer_family="bert",
    keys=KeyTable(
        prefix="bert",
        outer={
            **embedding_names("bert"),
            "head.dense": "cls.predictions.transform.dense",
            "head.norm": "cls.predictions.transform.LayerNorm",
            "head.decoder.weight": "cls.predictions.decoder.weight",
            "head.decoder.bias": "cls.predictions.bias",
            "pair_head.pooler": "bert.pooler.dense",
            "pair_head.classifier": "cls.seq_relationship",
        },
        block="bert.encoder.layer.{}",
        parts=ENCODER_PARTS,
        conv1d=False,
        tied={
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
    ),
    defaults=ENCODER_DEFAULTS,
    write=write_encoder,
    read=_read,
    objections=unshared,
)
