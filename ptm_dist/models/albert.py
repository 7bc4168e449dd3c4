"""ALBERT: BERT with narrow embeddings and blocks that layers share (Lan et al. 2019, arXiv 1909.11942, section 3)."""

from __future__ import annotations

from dataclasses import replace

from ptm_dist.models.bert import bert_spec
from ptm_dist.models.spec import ModelSpec
from ptm_dist.recipe.schema import ModelSection

_EMBEDDING_SIZE = 128


def albert_spec(section: ModelSection) -> ModelSpec:
    """Embeddings of width 128, widened by a matrix, and one block for all layers; the pair head learns their order."""
    bert = bert_spec(section)
    return replace(
        bert,
        embedding=replace(bert.embedding, size=section.embedding_size or _EMBEDDING_SIZE),
        layer_groups=section.layer_groups or 1,
    )
