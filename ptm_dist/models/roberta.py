"""RoBERTa: BERT's encoder without pairs (Liu et al. 2019, arXiv 1907.11692, sections 2 and 4)."""

from __future__ import annotations

from dataclasses import replace

from ptm_dist.models.bert import bert_spec
from ptm_dist.models.spec import Activation, InitialWeights, ModelSpec
from ptm_dist.recipe.schema import ModelSection

PADDING_ID = 1
"""The published code counts positions from behind the padding id: the first one reads row 2."""


def roberta_spec(section: ModelSection) -> ModelSpec:
    """One segment, exact GELU, positions behind the padding id, normal weights."""
    bert = bert_spec(section)
    return replace(
        bert,
        block=replace(
            bert.block,
            activation=Activation(section.activation or Activation.GELU_ERF),
            layer_norm_eps=section.layer_norm_eps or 1e-5,
        ),
        embedding=replace(bert.embedding, segments=1, position_offset=PADDING_ID + 1),
        pair_head=False,
        initial=InitialWeights(bert.initial.std, bert.initial.position_std),
    )
