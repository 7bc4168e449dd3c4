"""Every layout computes what one process computes."""

from __future__ import annotations

import pytest

from tests.parity.cells import Problem
from tests.parity.layouts import DOUBLE, EIGHT, EVERY, NUMBERS, Setting
from tests.parity.table import DROPPING, FAMILIES, FP64_TOLERANCE, OTHER_FAMILIES, measure

WORLDS = (1, 2, 3, 4)


def check(rows):
    assert rows
    for row in rows:
        assert row.passes, (row.family, row.setting, row.errors)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("world_size", WORLDS)
def test_every_family_equals_plain_training_on_every_other_layout(world_size, family):
    # `make parity` measures all of them; which half a family has here is a matter of its place.
    settings = [setting for setting in DOUBLE if setting.world_size == world_size]
    half = settings[list(FAMILIES).index(family) % 2 :: 2]
    check(measure({family: FAMILIES[family]}, half))


@pytest.mark.parametrize("family", DROPPING)
def test_training_with_dropout_is_the_same_on_every_layout(family):
    settings = [setting for setting in DOUBLE if setting.world_size <= 4]
    check(measure({family: DROPPING[family]}, settings[list(DROPPING).index(family) + 1 :: 12]))


@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_the_other_families_equal_plain_training_on_some_layouts(family):
    settings = [setting for setting in DOUBLE if setting.world_size <= 2]
    check(measure({family: OTHER_FAMILIES[family]}, settings[list(OTHER_FAMILIES).index(family) :: 6]))


def test_products_of_eight_processes_equal_plain_training():
    families = dict(zip(FAMILIES, FAMILIES.values(), strict=True))
    for place, setting in enumerate(EIGHT):
        family = list(families)[place % len(families)]
        check(measure({family: families[family]}, [setting]))


def test_single_precision_stays_close():
    check(measure(FAMILIES, [setting for setting in NUMBERS if setting.precision == "fp32"]))


def test_bfloat16_follows_single_precision_as_far_as_its_eight_bits_go():
    settings = [setting for setting in NUMBERS if setting.precision == "bf16"]
    for row in measure({"gpt2": FAMILIES["gpt2 (tied)"]}, settings):
        # Sums of products rounded to 2^-9; losses average that out, gradients of single parameters do not.
        assert row.errors.loss < 1e-2, (row.setting, row.errors)
        assert row.errors.gradient < 0.1, (row.setting, row.errors)


def test_ranks_with_no_share_of_the_vocabulary_or_of_the_batch_take_part():
    tiny_vocabulary = Problem(vocab_size=3, steps=3)
    tiny_batch = Problem(global_batch=2, steps=3)
    settings = {
        "vocabulary": [
            Setting("TP 4", 4, {"tensor_parallel": 4}),
            Setting("TP 4 + SP", 4, {"tensor_parallel": 4, "sequence_parallel": True}),
        ],
        "batch": [
            Setting("DP 4", 4, {}),
            Setting("ZeRO-2 x4", 4, {"zero_stage": 2}),
            Setting("ZeRO-3 x4", 4, {"zero_stage": 3, "recompute": "full"}),
        ],
    }
    for row in [
        *measure({"gpt2": tiny_vocabulary}, settings["vocabulary"]),
        *measure({"gpt2": tiny_batch}, settings["batch"]),
    ]:
        assert row.errors.worst() < FP64_TOLERANCE, (row.setting, row.errors)


def test_settings_have_names_of_their_own():
    names = [setting.name for setting in EVERY]
    assert len(set(names)) == len(names) >= 60
