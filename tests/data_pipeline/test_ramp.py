from __future__ import annotations

import pickle
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.ramp import BatchSizes


def sizes_by_counting(ramp, steps):
    """Batch sizes found by walking from step to step, in exact fractions."""
    consumed, sizes = 0, []
    stages = -(-(ramp.final - ramp.start) // ramp.increment)
    for _ in range(steps):
        done = Fraction(consumed, ramp.ramp_samples) if consumed < ramp.ramp_samples else Fraction(1)
        sizes.append(min(ramp.start + int(done * stages) * ramp.increment, ramp.final))
        consumed += sizes[-1]
    return sizes


@settings(deadline=None, max_examples=200)
@given(
    start=st.integers(1, 40),
    growth=st.integers(0, 60),
    increment=st.integers(1, 30),
    ramp_samples=st.integers(0, 3000),
)
def test_the_closed_form_of_a_ramp_equals_counting_step_by_step(start, growth, increment, ramp_samples):
    ramp = BatchSizes(start + growth, start, increment, ramp_samples)
    expected = sizes_by_counting(ramp, 150)
    assert [ramp.size(step) for step in range(150)] == expected
    assert [ramp.first_sample(step) for step in range(151)] == [sum(expected[:step]) for step in range(151)]


@given(size=st.integers(1, 10**6), step=st.integers(0, 10**9))
def test_a_constant_size_needs_no_ramp(size, step):
    assert (BatchSizes(size).size(step), BatchSizes(size).first_sample(step)) == (size, size * step)


def test_the_ramp_of_gpt_3_grows_from_32_to_1536_sequences():
    ramp = BatchSizes(1536, start=32, increment=32, ramp_samples=5_859_375)  # 12 billion tokens of 2048
    assert (ramp.size(0), ramp.size(10**6)) == (32, 1536)
    first_full = next(step for step in range(10**5) if ramp.size(step) == 1536)
    assert 0 <= ramp.first_sample(first_full) - 5_859_375 < 1536
    assert ramp.size(first_full - 1) == 1504


def test_steps_far_behind_a_ramp_are_found_at_once():
    ramp = BatchSizes(4096, start=1, increment=1, ramp_samples=10**12)
    assert ramp.first_sample(10**12 + 1) - ramp.first_sample(10**12) == ramp.size(10**12) == 4096


def test_a_ramp_survives_pickling_after_use():
    ramp = BatchSizes(64, 16, 16, 1000)
    expected = [ramp.size(step) for step in range(50)]
    copy = pickle.loads(pickle.dumps(ramp))
    assert copy == ramp
    assert [copy.size(step) for step in range(50)] == expected


@pytest.mark.parametrize(
    "arguments",
    [
        (0,),
        (8, 16, 4, 100),
        (8, 0, 4, 100),
        (8, 4, 0, 100),
        (8, 4, 4, -1),
        (8, 4, None, 0),
        (8, None, 4, 0),
        (8, None, None, 9),
    ],
)
def test_sizes_that_make_no_sense_are_refused(arguments):
    with pytest.raises(ValueError):
        BatchSizes(*arguments)


def test_there_is_no_step_before_the_first():
    for ask in (BatchSizes(4).size, BatchSizes(4).first_sample):
        with pytest.raises(ValueError):
            ask(-1)
