"""The GPT family: causal decoders without an encoder.

GPT-1: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", section 4.1.
GPT-2: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3.
GPT-3: Brown et al. 2020, "Language Models are Few-Shot Learners" (arXiv 2005.14165), section 2.1.
"""

from __future__ import annotations

from dataclasses import replace

from ptm_dist.models.spec import Activation, BlockSpec, EmbeddingSpec, InitialWeights, ModelSpec, NormPosition
from ptm_dist.recipe.schema import ModelSection

_BAND = 256
"""GPT-3's paper names the bands (Child et al. 2019) but not their width; GPT-Neo's open copy took 256."""


def gpt1_spec(section: ModelSection) -> ModelSpec:
    """LayerNorm after each residual addition, none at the end, every weight from N(0, 0.02)."""
    hidden_size, std = section.hidden_size, section.initializer_std
    return ModelSpec(
        block=BlockSpec(
            hidden_size=hidden_size,
            num_heads=section.num_heads,
            ffn_hidden_size=section.ffn_width,
            activation=Activation(section.activation or Activation.GELU_TANH),
            norm_position=NormPosition.POST,
            layer_norm_eps=section.layer_norm_eps or 1e-5,
            causal=True,
        ),
        embedding=EmbeddingSpec(section.vocab_size, hidden_size, section.max_positions),
        num_layers=section.num_layers,
        layer_groups=section.layer_groups or section.num_layers,
        attention_band=section.attention_band or 0,
        tie_embeddings=section.tie_embeddings,
        pair_head=False,
        initial=InitialWeights(std, position_std=section.position_initializer_std or std),
    )


def gpt2_spec(section: ModelSection) -> ModelSpec:
    """LayerNorm before each part and at the end; residual projections start smaller in deeper models."""
    first = gpt1_spec(section)
    return replace(
        first,
        block=replace(first.block, norm_position=NormPosition.PRE),
        initial=InitialWeights(
            section.initializer_std,
            position_std=section.position_initializer_std or 0.01,
            scaled_residuals=True,
        ),
    )


def gpt3_spec(section: ModelSection) -> ModelSpec:
    """GPT-2 whose every second layer sees a band of positions only; ``attention_band: 0`` makes all layers dense."""
    band = _BAND if section.attention_band is None else section.attention_band
    return replace(gpt2_spec(section), attention_band=band)
