"""Which recipes may go on from each other."""

from __future__ import annotations

from ptm_dist.recipe.history import read_until
from tests.ptm_dist.recipes import small_recipe


def test_more_steps_in_the_last_phase_change_nothing_that_was_read():
    shorter, longer = small_recipe(training__steps=3), small_recipe(training__steps=100)
    assert read_until(shorter, 3) == read_until(longer, 3)


def test_another_end_of_an_earlier_phase_changes_what_was_read_of_a_global_order():
    phases = [({"until_step": until, "sequence_length": 8},) for until in (4, 5)]
    first, second = (small_recipe(training__phases=phase, training__steps=9) for phase in phases)
    assert read_until(first, 3) != read_until(second, 3)
