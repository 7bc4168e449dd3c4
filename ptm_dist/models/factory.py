"""From the recipe's model section to a module."""

from __future__ import annotations

from dataclasses import replace

import torch

from ptm_dist.models.albert import albert_spec
from ptm_dist.models.bert import bert_spec
from ptm_dist.models.gpt import gpt1_spec, gpt2_spec, gpt3_spec
from ptm_dist.models.model import LanguageModel, Part
from ptm_dist.models.roberta import roberta_spec
from ptm_dist.models.spec import ModelSpec
from ptm_dist.recipe.schema import Family, ModelSection

_FAMILIES = {
    Family.GPT1: gpt1_spec,
    Family.GPT2: gpt2_spec,
    Family.GPT3: gpt3_spec,
    Family.BERT: bert_spec,
    Family.ROBERTA: roberta_spec,
    Family.ALBERT: albert_spec,
}


def model_spec(section: ModelSection) -> ModelSpec:
    """The architecture that a recipe's model section names."""
    attention_dropout = section.dropout if section.attention_dropout is None else section.attention_dropout
    spec = _FAMILIES[section.family](section)
    return replace(spec, dropout=section.dropout, attention_dropout=attention_dropout)


def build_model(section: ModelSection, part: Part | None = None) -> LanguageModel:
    """The module a recipe names, on the current default device (use ``torch.device("meta")`` to allocate nothing).

    A part of it, if one is given.

    Weights are whatever torch leaves there: see :mod:`ptm_dist.models.initialization`.
    """
    return LanguageModel(model_spec(section), part)


def parameter_shapes(section: ModelSection) -> dict[str, tuple[int, ...]]:
    """Canonical names and shapes of a model's parameters, tied ones once; allocates nothing."""
    with torch.device("meta"):
        model = build_model(section)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
