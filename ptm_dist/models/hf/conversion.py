"""From a recipe's model section to a class of ``transformers`` and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from ptm_dist.errors import CheckpointError, RecipeError
from ptm_dist.models.factory import model_spec, parameter_shapes
from ptm_dist.models.hf.albert import ALBERT
from ptm_dist.models.hf.bert import BERT
from ptm_dist.models.hf.counterpart import Counterpart
from ptm_dist.models.hf.gpt import GPT2, OPENAI_GPT
from ptm_dist.models.hf.keys import TensorPair
from ptm_dist.models.hf.roberta import ROBERTA
from ptm_dist.models.hf.settings import Settings
from ptm_dist.recipe.schema import Family, ModelSection

_BY_FAMILY = {
    Family.GPT1: OPENAI_GPT,
    Family.GPT2: GPT2,
    Family.GPT3: GPT2,
    Family.BERT: BERT,
    Family.ROBERTA: ROBERTA,
    Family.ALBERT: ALBERT,
}
_CLASSES = (OPENAI_GPT, GPT2, BERT, ROBERTA, ALBERT)
_DERIVED_KEYS = ("ffn_hidden_size", "embedding_size", "layer_groups", "layer_norm_eps", "activation")


def counterpart(section: ModelSection) -> Counterpart:
    """The class that holds a model.

    Raises: RecipeError that says why none does.
    """
    chosen = _BY_FAMILY[section.family]
    objections = chosen.objections(model_spec(section))
    if objections:
        raise RecipeError(f"this model cannot be a {chosen.model_class}: {'; '.join(objections)}")
    return chosen


def counterpart_of(config: Mapping[str, Any]) -> Counterpart:
    """The class that a ``config.json`` is of, or is a relative of.

    Raises: CheckpointError for any other class.
    """
    architectures = config.get("architectures") or []
    for known in _CLASSES:
        if {known.model_class, *known.relatives} & set(architectures):
            return known
        if not architectures and config.get("model_type") == known.model_type:
            return known
    named = ", ".join(map(str, architectures)) or f"model_type {config.get('model_type')!r}"
    raise CheckpointError(
        f"config.json is of {named}, which cannot be imported; use a model of "
        f"{', '.join(name for known in _CLASSES for name in (known.model_class, *known.relatives))}"
    )


def tensor_pairs(section: ModelSection) -> list[TensorPair]:
    """Every parameter of a model and what it is in its class.

    Raises: RecipeError if no class holds the model.
    """
    keys, spec = counterpart(section).keys, model_spec(section)
    return [keys.pair(name, spec) for name in parameter_shapes(section)]


def to_hf(tensors: Mapping[str, Tensor], section: ModelSection) -> dict[str, Tensor]:
    """Weights, or their gradients, by canonical name to those of the model's class, any number of them.

    A tied head is left out, as in files that ``transformers`` writes.
    """
    keys, spec = counterpart(section).keys, model_spec(section)
    translated: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        translated.update(keys.pair(name, spec).to_theirs(tensor))
    return translated


def from_hf(tensors: Mapping[str, Tensor], section: ModelSection) -> dict[str, Tensor]:
    """The way back: all parameters, or gradients, of the model's class to ours by canonical name."""
    return {pair.ours: pair.to_ours(tensors) for pair in tensor_pairs(section)}


def hf_config(section: ModelSection, special_ids: Mapping[str, int]) -> dict[str, Any]:
    """The ``config.json`` of a model.

    Dropout is what was used in training.

    Args:
        section: the model.
        special_ids: ids of the tokenizer by role; roles that are missing have no id in the result.

    Raises: RecipeError that says why no class holds the model.
    """
    chosen = counterpart(section)
    return {
        "architectures": [chosen.model_class],
        "model_type": chosen.model_type,
        "vocab_size": section.vocab_size,
        **chosen.write(section, model_spec(section), special_ids),
        "tie_word_embeddings": section.tie_embeddings,
        "dtype": "float32",
    }


def model_section(config: Mapping[str, Any]) -> ModelSection:
    """The recipe's model section of a ``config.json``; what the family implies is left out, dropout is not read.

    Raises: CheckpointError if the class is unknown, or has an option that no family here has.
    """
    chosen = counterpart_of(config)
    settings = Settings(config, chosen.defaults, chosen.model_class)
    try:
        values = {
            **chosen.read(settings),
            "vocab_size": settings["vocab_size"],
            "tie_embeddings": settings["tie_word_embeddings"],
        }
        section = ModelSection.model_validate(values)
        spec = model_spec(section)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"config.json gives {key}={first['input']!r}: {first['msg']}") from None
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"config.json contradicts itself: {error}") from None
    for key in _DERIVED_KEYS:
        shorter = section.model_copy(update={key: None})
        section = shorter if model_spec(shorter) == spec else section
    return section
