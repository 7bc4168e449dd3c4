from __future__ import annotations

from typing import Any

import pytest

from ptm_dist.recipe.fingerprint import differences, fingerprint, model_fingerprint
from ptm_dist.recipe.schema import Recipe
from tests.ptm_dist.recipes import small_recipe

LEARNT = {
    "model__num_layers": 3,
    "model__activation": "gelu_erf",
    "model__initializer_std": 0.03,
    "model__dropout": 0.1,
    "model__attention_dropout": 0.1,
    "data__sequence_length": 8,
    "data__shuffle": "none",
    "optimizer__learning_rate": 2e-3,
    "optimizer__betas": (0.9, 0.99),
    "schedule__kind": "linear",
    "schedule__warmup_steps": 2,
    "training__steps": 11,
    "training__global_batch_size": 9,
    "training__precision": "bf16",
    "training__seed": 1,
}
NOT_LEARNT = {
    "name": "other",
    "run_dir": "elsewhere",
    "data__path": "elsewhere",
    "data__tokenizer": "elsewhere",
    "data__num_workers": 2,
    "data__max_epochs": 3.0,
    "layout__zero_stage": 3,
    "layout__micro_batch_size": 4,
    "layout__recompute": "full",
    "kernels__add_norm": "triton",
    "deepspeed__offload_optimizer": "cpu",
    "evaluation__every": 5,
    "checkpoint__every": 5,
    "health__on_spike": "skip",
    "logging__every": 1,
    "launch__device": "cpu",
}


@pytest.mark.parametrize(("key", "value"), LEARNT.items())
def test_what_changes_learning_changes_the_fingerprint_and_is_told(key: str, value: Any):
    before, after = small_recipe(), small_recipe(**{key: value})
    assert fingerprint(before) != fingerprint(after)
    assert key.replace("__", ".") in [line.split(":")[0] for line in differences(before, after)]


@pytest.mark.parametrize(("key", "value"), NOT_LEARNT.items())
def test_what_does_not_change_learning_keeps_the_fingerprint(key: str, value: Any):
    before, after = small_recipe(), small_recipe(**{key: value})
    assert fingerprint(before) == fingerprint(after)
    assert differences(before, after) == []


def test_every_section_is_either_learnt_or_not():
    covered = {key.partition("__")[0] for key in {**LEARNT, **NOT_LEARNT}}
    assert covered | {"objective", "engine"} == set(Recipe.model_fields)


def test_a_default_written_out_is_no_difference():
    assert fingerprint(small_recipe(model__ffn_hidden_size=128)) == fingerprint(small_recipe())
    assert fingerprint(small_recipe(schedule__decay_steps=10)) == fingerprint(small_recipe())


def test_differences_read_as_before_and_after():
    other = small_recipe(optimizer__learning_rate=0.002)
    assert differences(small_recipe(), other) == ["optimizer.learning_rate: 0.001 -> 0.002"]


def test_the_model_fingerprint_follows_the_architecture_only():
    before = model_fingerprint(small_recipe())
    assert before == model_fingerprint(small_recipe(training__steps=99, model__initializer_std=0.5))
    assert before != model_fingerprint(small_recipe(model__tie_embeddings=False))


def test_the_fingerprint_is_the_same_in_every_process_and_version():
    assert fingerprint(small_recipe()) == "2696ed3cbfc6fb6e9c05d3adc63f11bc2d39c719b271f255f24c6dce7ff6288e"
