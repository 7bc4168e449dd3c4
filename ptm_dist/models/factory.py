"""From the recipe's model section to a module."""

from __future__ import annotations

from ptm_dist.models.gpt import GPT
from ptm_dist.models.spec import Activation, BlockSpec, ModelSpec, NormPosition
from ptm_dist.recipe.schema import ModelSection


def model_spec(section: ModelSection) -> ModelSpec:
    """The architecture that a recipe's model section names."""
    return ModelSpec(
        block=BlockSpec(
            hidden_size=section.hidden_size,
            num_heads=section.num_heads,
            ffn_hidden_size=section.ffn_width,
            activation=Activation(section.activation),
            norm_position=NormPosition.PRE,
            layer_norm_eps=section.layer_norm_eps,
            causal=True,
        ),
        num_layers=section.num_layers,
        vocab_size=section.vocab_size,
        max_positions=section.max_positions,
        tie_embeddings=section.tie_embeddings,
        initializer_std=section.initializer_std,
        position_initializer_std=section.position_initializer_std,
    )


def build_model(section: ModelSection) -> GPT:
    """The module a recipe names, on the current default device (use ``torch.device("meta")`` to allocate nothing).

    Weights are whatever torch leaves there: see :mod:`ptm_dist.models.initialization`.
    """
    return GPT(model_spec(section))
