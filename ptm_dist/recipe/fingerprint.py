"""Whether two recipes learn the same: a hash of all that changes what is learnt, and of nothing else."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ptm_dist.models import model_spec
from ptm_dist.recipe.schema import Recipe

Values = dict[str, Any]
_NEVER = object()

_NOT_ARCHITECTURE = {"initializer_std", "position_initializer_std", "dropout", "attention_dropout"}
_CAME_LATER = {"model": {"dropout": 0.0, "attention_dropout": 0.0}}
"""Keys that did not exist at first, with the value that recipes without them have: it leaves no trace in a hash, so
that runs go on which began before."""


def fingerprint(recipe: Recipe) -> str:
    """Sha256 (hex) of what the recipe learns: the same wherever, under whatever name it is computed."""
    learnt = _learnt(recipe)
    for section, keys in _CAME_LATER.items():
        learnt[section] = {key: value for key, value in learnt[section].items() if keys.get(key, _NEVER) != value}
    return _digest(learnt)


def model_fingerprint(recipe: Recipe) -> str:
    """Sha256 (hex) of the architecture: equal if weights of one recipe fit, and mean the same in, the other.

    How weights were initialised is left out, as it no longer matters once there are weights, and what training drops.
    """
    return _digest({key: value for key, value in _learnt(recipe)["model"].items() if key not in _NOT_ARCHITECTURE})


def differences(first: Recipe, second: Recipe) -> list[str]:
    """What keeps two recipes from learning the same, as `optimizer.learning_rate: 0.001 -> 0.002`.

    Empty exactly if their fingerprints are equal.
    """
    before, after = _flat(_learnt(first)), _flat(_learnt(second))
    return [f"{key}: {before[key]} -> {after[key]}" for key in before if before[key] != after[key]]


def _learnt(recipe: Recipe) -> Values:
    """The sections that change what is learnt, with defaults that follow other keys filled in."""
    learnt = recipe.model_dump(
        mode="json",
        include={
            "model": True,
            "data": {"sequence_length", "shuffle", "weight_changes"},
            "objective": True,
            "optimizer": True,
            "schedule": True,
            "training": True,
        },
    )
    learnt["model"] |= _filled_in(recipe)
    learnt["data"] |= _read(recipe)
    learnt["schedule"]["decay_steps"] = recipe.schedule.decay_steps or recipe.training.steps
    return learnt


def _read(recipe: Recipe) -> Values:
    """The keys of the data section that say what is read, wherever it lies."""
    data = recipe.data
    return {
        "sources": [[source.name, source.weight] for source in data.named_sources],
        "shuffle_shards": data.shuffle_shards if data.shuffle == "block" else None,
        "on_broken": data.on_broken,
    }


def _filled_in(recipe: Recipe) -> Values:
    """The keys of the model section that a family sets when they are left out."""
    spec = model_spec(recipe.model)
    return {
        "ffn_hidden_size": spec.block.ffn_hidden_size,
        "embedding_size": spec.embedding.size,
        "layer_groups": spec.layer_groups,
        "attention_band": spec.attention_band,
        "layer_norm_eps": spec.block.layer_norm_eps,
        "activation": spec.block.activation.value,
        "position_initializer_std": spec.initial.position_std,
        "attention_dropout": spec.attention_dropout,
    }


def _flat(learnt: Values) -> dict[str, str]:
    return {f"{section}.{key}": json.dumps(value) for section, keys in learnt.items() for key, value in keys.items()}


def _digest(values: Values) -> str:
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
