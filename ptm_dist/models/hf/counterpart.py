"""What each file of this package says of its model class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ptm_dist.models.hf.keys import KeyTable
from ptm_dist.models.hf.settings import Settings
from ptm_dist.models.spec import ModelSpec
from ptm_dist.recipe.schema import ModelSection


@dataclass(frozen=True)
class Counterpart:
    """The class of ``transformers`` that holds one of our families.

    Attributes:
        model_class: the one with all heads, which exports are of.
        relatives: classes with fewer heads or none, which can be imported too.
        model_type: in ``config.json``.
        tokenizer_family: gpt, bert, roberta or albert: which tokenizer files go with it.
        keys: its names.
        defaults: values of ``config.json`` that are left out.
        write: the part of ``config.json`` that this class alone has, from a model it can hold and the special ids.
        read: the keys of a model section that ``config.json`` gives.
        objections: why a model cannot be held, a sentence each.
    """

    model_class: str
    relatives: tuple[str, ...]
    model_type: str
    tokenizer_family: str
    keys: KeyTable
    defaults: Mapping[str, Any]
    write: Callable[[ModelSection, ModelSpec, Mapping[str, int]], dict[str, Any]]
    read: Callable[[Settings], dict[str, Any]]
    objections: Callable[[ModelSpec], list[str]]


def unshared(spec: ModelSpec) -> list[str]:
    """Objections to layers that share blocks and to embeddings of another width, which only ALBERT has."""
    found = []
    if spec.layer_groups != spec.num_layers:
        found.append(
            f"model.layer_groups={spec.layer_groups} shares blocks between {spec.num_layers} layers, which only "
            "AlbertForPreTraining does"
        )
    if spec.embedding.size != spec.block.hidden_size:
        found.append(
            f"model.embedding_size={spec.embedding.size} is not model.hidden_size={spec.block.hidden_size}, which "
            "only AlbertForPreTraining allows"
        )
    return found
