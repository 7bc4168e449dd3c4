from __future__ import annotations

from typing import Any

import pytest

from ptm_dist.errors import RecipeError
from ptm_dist.recipe.checks import check_recipe
from ptm_dist.recipe.fingerprint import differences, model_fingerprint
from tests.ptm_dist.recipes import small_recipe

PHASE = {"until_step": 4, "sequence_length": 8}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"model__family": "bert"},
            "objective.kind=causal does not suit model.family=bert; use objective.kind=mlm_nsp or mlm_sop, or "
            "model.family=gpt1 or gpt2 or gpt3",
        ),
        (
            {"model__family": "roberta", "objective__kind": "mlm_sop"},
            "use objective.kind=mlm, or model.family=bert or albert",
        ),
        ({"objective__kind": "mlm"}, "use objective.kind=causal, or model.family=roberta"),
        ({"model__embedding_size": 16}, "model.embedding_size=16 belongs to bert, roberta and albert"),
        (
            {"model__family": "albert", "objective__kind": "mlm_sop", "model__attention_band": 8},
            "model.attention_band=8 belongs to gpt1, gpt2 and gpt3",
        ),
        ({"model__layer_groups": 3}, "model.layer_groups=3 is more than model.num_layers=2"),
        (
            {"model__family": "roberta", "objective__kind": "mlm", "objective__mask_fraction": 0.0},
            "objective.mask_fraction=0 leaves nothing to predict",
        ),
        (
            {"model__family": "roberta", "objective__kind": "mlm", "objective__random_share": 0.3},
            "more than 1 together",
        ),
        (
            {"training__phases": [{**PHASE, "until_step": 10}]},
            "training.phases[0].until_step=10 must lie between 0, where the phase before ends, and training.steps=10",
        ),
        (
            {"training__phases": [PHASE, {**PHASE, "until_step": 3}]},
            "training.phases[1].until_step=3 must lie between 4",
        ),
        (
            {"training__phases": [{**PHASE, "sequence_length": 65}]},
            "training.phases[0].sequence_length=65 is longer than model.max_positions=64",
        ),
        (
            {"training__batch_ramp": {"start": 9, "increment": 1, "samples": 9}},
            "training.batch_ramp.start=9 is more than the batch size it grows to, 8",
        ),
    ],
)
def test_a_family_objective_or_phase_that_does_not_fit_is_refused_with_what_would(
    values: dict[str, Any], expected: str
):
    with pytest.raises(RecipeError) as caught:
        check_recipe(small_recipe(**values), 1, 128)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("family", "objective"),
    [("gpt1", "causal"), ("gpt3", "causal"), ("bert", "mlm_nsp"), ("roberta", "mlm"), ("albert", "mlm_sop")],
)
def test_the_published_objective_of_each_family_is_accepted(family: str, objective: str):
    check_recipe(small_recipe(model__family=family, objective__kind=objective), 1, 128)


def test_a_value_that_the_family_sets_anyway_makes_no_other_model():
    bert = {"model__family": "bert", "objective__kind": "mlm_nsp"}
    said = small_recipe(**bert, model__layer_norm_eps=1e-12, model__activation="gelu_tanh", model__embedding_size=32)
    assert model_fingerprint(small_recipe(**bert)) == model_fingerprint(said)
    assert differences(small_recipe(**bert), said) == []
    other = small_recipe(**bert, model__activation="gelu_erf")
    assert differences(small_recipe(**bert), other) == ['model.activation: "gelu_tanh" -> "gelu_erf"']
