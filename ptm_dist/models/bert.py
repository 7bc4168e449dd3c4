"""BERT: a bidirectional encoder that predicts masked tokens and whether two text parts follow each other.

Devlin et al. 2018 (arXiv 1810.04805), section 3 and appendix A, and the code published with it.
"""

from __future__ import annotations

from ptm_dist.models.spec import Activation, BlockSpec, EmbeddingSpec, InitialWeights, ModelSpec, NormPosition
from ptm_dist.recipe.schema import ModelSection


def bert_spec(section: ModelSection) -> ModelSpec:
    """The original transformer's encoder on token, position and segment embeddings, with two heads."""
    std = section.initializer_std
    return ModelSpec(
        block=BlockSpec(
            hidden_size=section.hidden_size,
            num_heads=section.num_heads,
            ffn_hidden_size=section.ffn_width,
            activation=Activation(section.activation or Activation.GELU_TANH),
            norm_position=NormPosition.POST,
            layer_norm_eps=section.layer_norm_eps or 1e-12,
            causal=False,
        ),
        embedding=EmbeddingSpec(
            vocab_size=section.vocab_size,
            size=section.embedding_size or section.hidden_size,
            max_positions=section.max_positions,
            segments=2,
            normalised=True,
        ),
        num_layers=section.num_layers,
        layer_groups=section.layer_groups or section.num_layers,
        attention_band=0,
        tie_embeddings=section.tie_embeddings,
        pair_head=True,
        initial=InitialWeights(std, position_std=section.position_initializer_std or std, truncated=True),
    )
