"""Dropout in training: a function of the run and the place, gone in evaluation."""

from __future__ import annotations

import math

import pytest
import torch

from ptm_dist.engines.native import NativeEngine
from ptm_dist.kernels.dropout import Drop, dropped
from ptm_dist.kernels.philox import philox, threshold
from ptm_dist.models.draws import Site, dropout_keys
from ptm_dist.recipe.layout import resolve_layout
from tests.parity.cells import Cell, Problem, global_batch


def numbers(*values: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(value) for value in values)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, words):
    assert [int(word) for word in philox(numbers(*counter), numbers(*key))] == list(words)


def a_drop(probability: float = 0.25) -> Drop:
    return Drop(probability, torch.tensor([7, 9]), torch.arange(64), torch.arange(32))


def test_a_part_of_a_batch_has_its_part_of_the_mask():
    whole = a_drop()
    part = Drop(0.25, whole.key, whole.samples[5:9], whole.positions[3:20])
    assert torch.equal(part.kept(48), whole.kept(48)[5:9, 3:20])
    assert torch.equal(part.kept(40), whole.kept(48)[5:9, 3:20, :40])


def test_the_wanted_share_is_dropped_and_the_rest_makes_up_for_it():
    drop, ones = a_drop(), torch.ones(64, 32, 48)
    out = dropped(ones, drop)
    share = threshold(0.25) / 65536
    deviation = math.sqrt(share * (1 - share) / ones.numel())
    assert abs((out == 0).double().mean() - share) < 5 * deviation
    assert out.max() == pytest.approx(1 / (1 - share), rel=1e-6)


def test_the_gradient_is_dropped_as_the_value_was():
    hidden = torch.randn(64, 32, 48, dtype=torch.float64, requires_grad=True)
    out = dropped(hidden, a_drop())
    out.backward(torch.ones_like(out))
    assert torch.equal(hidden.grad, (out != 0).double() * a_drop().scale)


def test_keys_differ_by_seed_step_layer_and_site():
    keys = torch.stack([dropout_keys(seed, step, 3) for seed in (1, 2) for step in (0, 1, 2)])
    assert keys.shape == (6, 4, len(Site), 2)
    assert len(set(map(tuple, keys.flatten(0, 2).tolist()))) == 6 * 4 * len(Site)


def engine_of(problem: Problem, **layout) -> NativeEngine:
    recipe = Cell(problem, 1, layout).recipe()
    return NativeEngine(recipe, resolve_layout(recipe.layout, 1), torch.device("cpu"))


@pytest.mark.parametrize("family", ["gpt1", "gpt2", "bert", "albert"])
def test_training_drops_and_evaluation_does_not(family):
    plain, dropping = engine_of(Problem(family)), engine_of(Problem(family, dropout=0.1))
    batch = global_batch(Problem(family), 0)
    assert plain.evaluate([batch]).loss == dropping.evaluate([batch]).loss
    losses = [engine.accumulate(batch)[0][0].item() for engine in (plain, dropping, dropping)]
    assert losses[0] != losses[1] == losses[2]


def test_every_step_drops_something_else():
    engine = engine_of(Problem(dropout=0.1))
    batch = global_batch(Problem(), 0)
    later = type(batch)(**{**vars(batch), "step": 1})
    assert engine.accumulate(batch)[0][0] != engine.accumulate(later)[0][0]


@pytest.mark.parametrize("kind", ["full", "selective"])
def test_recomputation_drops_the_same(kind):
    problem = Problem(dropout=0.1)
    gradients = []
    for layout in ({}, {"recompute": kind}):
        engine = engine_of(problem, **layout)
        engine.accumulate(global_batch(problem, 0))
        gradients.append(engine.model.gradients())
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
