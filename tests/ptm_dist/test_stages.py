from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptm_dist.errors import LayoutError
from ptm_dist.models import model_spec
from ptm_dist.models.model import LanguageModel, Part
from ptm_dist.parallel.stages import balanced_split, split_problems, stage_costs, stage_parts
from ptm_dist.recipe.schema import Recipe
from ptm_dist.training.flops import flops_per_sample, predictions_per_sample
from tests.ptm_dist.recipes import small_recipe

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt1": {},
    "gpt2": {},
    "gpt3": {"model__attention_band": 5},
    "bert": {"objective__kind": "mlm_nsp", "objective__max_predictions": 2},
    "roberta": {"objective__kind": "mlm"},
    "albert": {"objective__kind": "mlm_sop", "model__embedding_size": 12},
}
GPT2_SMALL = {
    "model__hidden_size": 768,
    "model__num_heads": 12,
    "model__num_layers": 12,
    "model__vocab_size": 50257,
    "model__max_positions": 1024,
    "data__sequence_length": 1024,
}


def recipe_of(family: str, **values: Any) -> Recipe:
    return small_recipe(**{"model__num_layers": 4, **values, "model__family": family, **FAMILIES[family]})


def all_splits(layers: int, stages: int) -> list[tuple[int, ...]]:
    return list(combinations(range(1, layers), stages - 1))


def layers_of(split: tuple[int, ...], layers: int) -> list[int]:
    return [end - first for first, end in pairwise((0, *split, layers))]


def costs_of(split: tuple[int, ...], costs: list[int]) -> list[int]:
    return [sum(costs[first:end]) for first, end in pairwise((0, *split, len(costs)))]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.data())
@settings(max_examples=200, deadline=None)
def test_no_cut_has_a_cheaper_costliest_stage_nor_is_as_even_with_fewer_layers_first(costs, data):
    stages = data.draw(st.integers(1, len(costs)))
    best = min(
        all_splits(len(costs), stages),
        key=lambda split: (
            max(costs_of(split, costs)),
            sum(cost**2 for cost in costs_of(split, costs)),
            layers_of(split, len(costs)),
        ),
    )
    assert balanced_split(costs, stages) == best


@pytest.mark.parametrize("family", FAMILIES)
def test_costs_of_layers_add_up_to_the_flops_of_a_sample(family):
    recipe = recipe_of(family)
    length = recipe.data.sequence_length
    costs = stage_costs(model_spec(recipe.model), length, predictions_per_sample(recipe, length))
    forward_and_backward = 3
    assert 2 * sum(costs) * forward_and_backward == flops_per_sample(recipe, length).causal


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_in_a_row_compute_what_the_whole_model_computes(family):
    torch.manual_seed(0)
    spec = model_spec(recipe_of(family).model)
    whole = LanguageModel(spec).double()
    ids = torch.randint(0, spec.embedding.vocab_size, (2, 8))
    hidden = ids
    for part in stage_parts(spec, 3):
        model = LanguageModel(spec, part).double()
        weights = whole.state_dict()
        model.load_state_dict({name: weights[name] for name in model.state_dict()})
        hidden = model(hidden)
    expected = whole(ids)
    torch.testing.assert_close(hidden.tokens, expected.tokens, rtol=0, atol=1e-12)


def test_the_head_of_gpt2_stands_for_five_layers():
    spec = model_spec(recipe_of("gpt2", **GPT2_SMALL).model)
    costs = stage_costs(spec, 1024, 1024)
    assert 4.5 < (costs[-1] - costs[0]) / costs[0] < 5.5
    assert stage_parts(spec, 4) == [Part(0, 3), Part(3, 7), Part(7, 11), Part(11, 12)]
    assert stage_parts(spec, 2) == [Part(0, 8), Part(8, 12)]


def test_the_head_of_bert_weighs_what_it_predicts():
    spec = model_spec(recipe_of("bert", **{**GPT2_SMALL, "model__max_positions": 512}).model)
    few, all_positions = (stage_parts(spec, 4, predictions=count)[-1] for count in (20, 512))
    assert few == Part(9, 12)
    assert all_positions == Part(11, 12)


def test_earlier_stages_have_fewer_layers_where_stages_cannot_be_equal():
    assert layers_of(balanced_split([1] * 10, 4), 10) == [2, 2, 3, 3]


def test_a_split_of_the_recipe_is_taken_as_it_stands():
    spec = model_spec(recipe_of("gpt2").model)
    assert stage_parts(spec, 3, split=(1, 3)) == [Part(0, 1), Part(1, 3), Part(3, 4)]
    assert stage_parts(spec, 1) == [Part(0, 4)]


@pytest.mark.parametrize(
    ("layers", "stages", "split", "message"),
    [
        (3, 4, None, "model.num_layers=3 is too few for the 4 stages of the pipeline, which need a layer each; use"),
        (8, 4, (2, 4), "layout.pipeline_split=[2, 4] starts 3 stages, the pipeline has 4; leave it out, or use for"),
        (8, 4, (2, 2, 6), "layout.pipeline_split=[2, 2, 6] leaves a stage without layers"),
        (8, 4, (4, 2, 6), "must ascend and lie between 1 and 7; leave it out, or use for example [2, 4, 6]"),
        (8, 4, (2, 4, 8), "layout.pipeline_split=[2, 4, 8] leaves a stage without layers"),
        (8, 1, (3,), "layout.pipeline_split=[3] starts 2 stages, the pipeline has 1; leave it out"),
    ],
)
def test_a_cut_that_cannot_be_says_what_could(layers, stages, split, message):
    (problem,) = split_problems(layers, stages, split)
    assert message in problem
    spec = model_spec(recipe_of("gpt2", model__num_layers=layers).model)
    with pytest.raises(LayoutError) as error:
        stage_parts(spec, stages, split=split)
    assert str(error.value) == problem


@given(st.integers(1, 40), st.data())
@settings(max_examples=60, deadline=None)
def test_what_is_proposed_instead_works(layers, data):
    stages = data.draw(st.integers(2, layers + 1))
    (problem,) = split_problems(layers, stages, (0,) * (stages - 1))
    _, proposed, numbers = problem.partition("for example ")
    assert bool(proposed) == (stages <= layers)
    if proposed:
        example = tuple(int(number) for number in numbers.strip("[]").split(","))
        assert list(split_problems(layers, stages, example)) == []
