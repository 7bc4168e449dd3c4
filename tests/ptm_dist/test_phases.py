from __future__ import annotations

from ptm_dist.recipe.phases import phase_at, phases, samples_before, tokens_before
from tests.ptm_dist.recipes import small_recipe

RECIPE = small_recipe(
    training__phases=[
        {"until_step": 3, "sequence_length": 4, "global_batch_size": 6, "max_predictions": 2},
        {"until_step": 5, "sequence_length": 8},
    ],
    training__batch_ramp={"start": 2, "increment": 2, "samples": 6},
    objective__max_predictions=5,
)


def test_a_step_has_the_length_and_batch_size_of_its_phase():
    sizes = [phase_at(RECIPE, step).sizes.size(step - phase_at(RECIPE, step).first_step) for step in range(10)]
    # The ramp has two stages of three samples; a step is chosen whole.
    assert sizes == [2, 2, 4, 8, 8, 8, 8, 8, 8, 8]
    assert [phase_at(RECIPE, step).sequence_length for step in range(10)] == [4, 4, 4, 8, 8, 16, 16, 16, 16, 16]
    assert [phase.max_predictions for phase in phases(RECIPE)] == [2, 5, 5]


def test_samples_and_tokens_before_a_step_are_the_sums_over_all_steps_before():
    samples = tokens = 0
    for step in range(RECIPE.training.steps):
        assert (samples_before(RECIPE, step), tokens_before(RECIPE, step)) == (samples, tokens)
        phase = phase_at(RECIPE, step)
        size = phase.sizes.size(step - phase.first_step)
        samples += size
        tokens += size * phase.sequence_length


def test_a_run_without_phases_is_one_phase_with_the_recipes_own_values():
    (phase,) = phases(small_recipe())
    assert (phase.first_step, phase.end_step, phase.sequence_length, phase.sizes.size(9)) == (0, 10, 16, 8)
    assert phase_at(small_recipe(), 99) == phase
