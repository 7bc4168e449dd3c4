"""A short seeded version of `make chaos`: one fault of each important kind, and the curve of the undisturbed run."""

from __future__ import annotations

from random import Random

from tests.chaos.faults import FAULTS
from tests.chaos.trial import SHARES, Trial, choose, run_trial

KINDS = ["killed while saving", "agent killed", "byte flipped", "killed while starting", "worker stopped", "disk full"]


def test_a_run_that_is_disturbed_at_random_ends_as_if_it_had_been_left_alone(tmp_path):
    outcome = run_trial(Trial("gpt"), KINDS, Random(1), tmp_path)
    assert outcome.problems() == []
    assert set(outcome.counts()) >= set(KINDS) - {"disk full"}
    assert len(outcome.rounds) > len(outcome.faults)
    assert set(outcome.rounds) == {4}
    assert (outcome.curve.samples_lost, outcome.curve.samples_repeated) == (0, 0)


def test_thirty_faults_are_of_every_kind_and_the_same_for_the_same_seed():
    chosen = choose(30, Random(5))
    assert {kind: chosen.count(kind) for kind in FAULTS} == SHARES
    assert chosen == choose(30, Random(5)) != choose(30, Random(6))
