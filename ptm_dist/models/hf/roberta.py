"""``RobertaForMaskedLM``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ptm_dist.errors import RecipeError
from ptm_dist.models.hf.bert import ENCODER_DEFAULTS, ENCODER_PARTS, embedding_names, read_encoder, write_encoder
from ptm_dist.models.hf.counterpart import Counterpart, unshared
from ptm_dist.models.hf.keys import KeyTable
from ptm_dist.models.hf.settings import Settings, token_id
from ptm_dist.models.roberta import PADDING_ID
from ptm_dist.models.spec import Activation, ModelSpec
from ptm_dist.recipe.schema import Family, ModelSection


def _write(section: ModelSection, spec: ModelSpec, special_ids: Mapping[str, int]) -> dict[str, Any]:
    # Their positions are counted from the padding id: another one would shift every position.
    if special_ids.get("pad", PADDING_ID) != PADDING_ID:
        raise RecipeError(
            f"RobertaForMaskedLM counts positions from the padding id and needs {PADDING_ID} there; the tokenizer's is "
            f"{special_ids['pad']}: train with a bytelevel-bpe or sentencepiece tokenizer to export"
        )
    return {
        **write_encoder(section, spec, special_ids),
        "pad_token_id": PADDING_ID,
        "bos_token_id": token_id(special_ids, "classify"),
        "eos_token_id": token_id(special_ids, "separator"),
    }


def _read(settings: Settings) -> dict[str, Any]:
    settings.expect("type_vocab_size", [1])
    settings.expect("pad_token_id", [PADDING_ID])
    values = read_encoder(settings, Family.ROBERTA)
    # Their masked-token head is exact whatever hidden_act says.
    settings.expect("hidden_act", ["gelu"])
    return {**values, "max_positions": values["max_positions"] - PADDING_ID - 1}


def _objections(spec: ModelSpec) -> list[str]:
    found = unshared(spec)
    if spec.block.activation is not Activation.GELU_ERF:
        found.append("the head of RobertaForMaskedLM computes GELU exactly (model.activation: gelu_erf)")
    return found


ROBERTA = Counterpart(
    model_class="RobertaForMaskedLM",
    relatives=("RobertaModel",),
    model_type="roberta",
    tokenizer_family="roberta",
    keys=KeyTable(
        prefix="roberta",
        outer={
            **embedding_names("roberta"),
            "head.dense": "lm_head.dense",
            "head.norm": "lm_head.layer_norm",
            "head.decoder.weight": "lm_head.decoder.weight",
            "head.decoder.bias": "lm_head.bias",
        },
        block="roberta.encoder.layer.{}",
        parts=ENCODER_PARTS,
        conv1d=False,
        tied={
            "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        },
        unused=r"roberta\.pooler\.dense\.(weight|bias)",
    ),
    defaults={**ENCODER_DEFAULTS, "pad_token_id": PADDING_ID},
    write=_write,
    read=_read,
    objections=_objections,
)
