"""Small recipes for the tests of this folder."""

from __future__ import annotations

from typing import Any

from ptm_dist.recipe.schema import Recipe

_SMALL: dict[str, dict[str, Any]] = {
    "model": {"vocab_size": 128, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_positions": 64},
    "data": {"path": "data", "tokenizer": "tokenizer", "sequence_length": 16},
    "optimizer": {"learning_rate": 1e-3},
    "training": {"steps": 10, "global_batch_size": 8, "precision": "fp32"},
}


def small_recipe(**values: Any) -> Recipe:
    """A small recipe with `section__key=value` changed."""
    sections = {section: dict(keys) for section, keys in _SMALL.items()}
    top = {"name": "small"}
    for name, value in values.items():
        section, _, key = name.partition("__")
        if key:
            sections.setdefault(section, {})[key] = value
        else:
            top[name] = value
    return Recipe.model_validate({**top, **sections})
