"""``AlbertForPreTraining``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ptm_dist.errors import CheckpointError
from ptm_dist.models.hf.bert import ENCODER_DEFAULTS, embedding_names, read_encoder, write_encoder
from ptm_dist.models.hf.counterpart import Counterpart
from ptm_dist.models.hf.keys import KeyTable
from ptm_dist.models.hf.settings import Settings, token_id
from ptm_dist.models.spec import ModelSpec
from ptm_dist.recipe.schema import Family, ModelSection


def _write(section: ModelSection, spec: ModelSpec, special_ids: Mapping[str, int]) -> dict[str, Any]:
    return {
        **write_encoder(section, spec, special_ids),
        "embedding_size": spec.embedding.size,
        "num_hidden_groups": spec.layer_groups,
        "inner_group_num": 1,
        "bos_token_id": token_id(special_ids, "classify"),
        "eos_token_id": token_id(special_ids, "separator"),
        "classifier_dropout_prob": 0.0,
    }


def _read(settings: Settings) -> dict[str, Any]:
    settings.expect("type_vocab_size", [2])
    settings.expect("inner_group_num", [1])
    # The first versions had it: memory that no published model uses.
    settings.expect("num_memory_blocks", [0])
    layers = settings["num_hidden_layers"]
    settings.expect("num_hidden_groups", [groups for groups in range(1, layers + 1) if layers % groups == 0])
    if settings["embedding_size"] == settings["hidden_size"]:
        raise CheckpointError(
            f"config.json has embedding_size={settings['embedding_size']} equal to hidden_size: the matrix between "
            "them has no place here, where only embeddings of another width have one"
        )
    return {
        **read_encoder(settings, Family.ALBERT),
        "embedding_size": settings["embedding_size"],
        "layer_groups": settings["num_hidden_groups"],
    }


def _objections(spec: ModelSpec) -> list[str]:
    if spec.embedding.size == spec.block.hidden_size:
        return [
            "AlbertForPreTraining always has a matrix between embeddings and blocks, which a model with "
            f"model.embedding_size={spec.embedding.size} equal to model.hidden_size lacks"
        ]
    return []


ALBERT = Counterpart(
    model_class="AlbertForPreTraining",
    relatives=("AlbertModel", "AlbertForMaskedLM"),
    model_type="albert",
    tokenizer_family="albert",
    keys=KeyTable(
        prefix="albert",
        outer={
            **embedding_names("albert"),
            "embeddings.projection": "albert.encoder.embedding_hidden_mapping_in",
            "head.dense": "predictions.dense",
            "head.norm": "predictions.LayerNorm",
            "head.decoder.weight": "predictions.decoder.weight",
            "head.decoder.bias": "predictions.bias",
            "pair_head.pooler": "albert.pooler",
            "pair_head.classifier": "sop_classifier.classifier",
        },
        block="albert.encoder.albert_layer_groups.{}.albert_layers.0",
        parts={
            "attention_norm": ("attention.LayerNorm",),
            "attention.qkv": ("attention.query", "attention.key", "attention.value"),
            "attention.output": ("attention.dense",),
            "ffn_norm": ("full_layer_layer_norm",),
            "ffn.up": ("ffn",),
            "ffn.down": ("ffn_output",),
        },
        conv1d=False,
        tied={
            "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
            "predictions.decoder.bias": "predictions.bias",
        },
    ),
    defaults={
        **ENCODER_DEFAULTS,
        "hidden_act": "gelu_new",
        "embedding_size": 128,
        "num_hidden_groups": 1,
        "inner_group_num": 1,
        "num_memory_blocks": 0,
    },
    write=_write,
    read=_read,
    objections=_objections,
)
