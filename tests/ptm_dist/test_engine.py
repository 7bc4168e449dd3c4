"""What an engine promises beside parity: initial weights, number formats, who holds what."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ptm_dist.recipe.layout import resolve_layout
from tests.distributed import run_distributed
from tests.parity.cells import LEARNING_RATE, Cell, Problem, gather, slice_batch

HARD = Problem(tied=True, vocab_size=101)
LAYOUTS = [
    (1, {}),
    (2, {"zero_stage": 3}),
    (3, {"zero_stage": 1}),
    (4, {"tensor_parallel": 4}),
    (4, {"tensor_parallel": 2, "zero_stage": 3, "sequence_parallel": True}),
    (4, {"zero_stage": 3, "data_parallel_replicate": 2}),
]


def initial_state(cell: Cell) -> dict[str, torch.Tensor]:
    return gather(cell.engine().state())


def test_initial_state_is_bitwise_the_same_at_every_layout():
    states = [run_distributed(initial_state, world, Cell(HARD, world, layout))[0] for world, layout in LAYOUTS]
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[name], states[0][name]) for name in state)
    embedding = states[0]["model.embeddings.token.weight"]
    assert embedding.std().item() == pytest.approx(0.02, rel=0.05)


def test_another_seed_gives_other_weights_and_names_differ_from_each_other():
    state = run_distributed(initial_state, 1, Cell(HARD, 1, {}))[0]
    first, second = (state[f"model.layers.{layer}.attention.qkv.weight"] for layer in (0, 1))
    assert not torch.equal(first, second)


def bfloat16_losses(cell: Cell) -> list[float]:
    engine = cell.engine()
    batch = slice_batch(cell.problem, 0, engine)
    return [engine.step(batch, LEARNING_RATE).loss for _ in range(8)]


def test_bfloat16_learns_and_stays_near_single_precision_at_every_layout():
    problem = replace(HARD, precision="bf16")
    exact = run_distributed(bfloat16_losses, 1, Cell(replace(HARD, precision="fp32"), 1, {}))[0]
    for world, layout in LAYOUTS:
        losses = run_distributed(bfloat16_losses, world, Cell(problem, world, layout))[0]
        assert losses[-1] < losses[0] - 0.3, layout
        # Rounding to 8 bits of mantissa: about 2**-8 of a loss near 4.6.
        deviation = max(abs(a - b) for a, b in zip(losses, exact, strict=True))
        assert 1e-6 < deviation < 0.02, layout


def dtypes_and_sizes(cell: Cell) -> tuple[set[torch.dtype], int, int]:
    engine = cell.engine()
    engine.step(slice_batch(cell.problem, 0, engine), LEARNING_RATE)
    state = engine.state()
    weights = sum(shard.local.numel() for name, shard in state.items() if name.startswith("model."))
    return (
        {shard.local.dtype for shard in state.values()},
        weights,
        sum(s.local.numel() for s in state.values()),
    )


def test_bfloat16_keeps_master_weights_and_moments_in_single_precision():
    problem = replace(HARD, precision="bf16")
    for world, layout in LAYOUTS:
        dtypes, _, _ = run_distributed(dtypes_and_sizes, world, Cell(problem, world, layout))[0]
        assert dtypes == {torch.float32}


def test_each_rank_holds_its_share_of_weights_and_moments():
    whole = run_distributed(dtypes_and_sizes, 1, Cell(HARD, 1, {}))[0]
    for world, layout in [(2, {"zero_stage": 1}), (2, {"zero_stage": 3})]:
        ranks = run_distributed(dtypes_and_sizes, world, Cell(HARD, world, layout))
        assert sum(weights for _, weights, _ in ranks) == whole[1]
        assert sum(state for _, _, state in ranks) == whole[2]
        assert max(weights for _, weights, _ in ranks) < 0.55 * whole[1]


def compiled_losses(cell: Cell) -> list[float]:
    engine = cell.engine()
    return [engine.step(slice_batch(cell.problem, step, engine), LEARNING_RATE).loss for step in range(2)]


@pytest.mark.parametrize(
    ("world", "layout"),
    [
        (1, {"recompute": "full"}),
        (2, {"zero_stage": 3}),
        (2, {"tensor_parallel": 2, "sequence_parallel": True}),
        (2, {"pipeline_parallel": 2, "pipeline_schedule": "zbv_zero_bubble"}),
    ],
)
def test_compiled_blocks_compute_the_same(world, layout):
    problem = replace(HARD, num_layers=4) if "pipeline_parallel" in layout else HARD
    eager = run_distributed(compiled_losses, world, Cell(problem, world, layout, 3))[0]
    compiled = run_distributed(compiled_losses, world, Cell(problem, world, {**layout, "compile": True}, 3))[0]
    assert compiled == pytest.approx(eager, rel=1e-12)


@pytest.mark.parametrize(("asked", "count", "size"), [(64, 1, 12), (12, 1, 12), (8, 2, 6), (5, 3, 4), (1, 12, 1)])
def test_micro_batches_are_at_most_as_large_as_asked_and_as_even_as_can_be(asked, count, size):
    layout = resolve_layout(Cell(HARD, 1, {"micro_batch_size": asked}).recipe().layout, 1)
    assert layout.micro_batches(12) == (count, size)


def test_a_phase_of_shorter_samples_takes_more_of_them_at_once():
    layout = resolve_layout(Cell(HARD, 1, {"micro_batch_size": 2}).recipe().layout, 1)
    assert layout.micro_batches(12, times_shorter=3) == (2, 6)


def results_after_damage(cells: list[Cell]) -> list[tuple[float, float]]:
    """Loss and norm that this rank sees after one number of the last rank's weights is no longer one."""
    seen = []
    for cell in cells:
        engine = cell.engine()
        if engine.mesh.losses.rank == engine.mesh.losses.size - 1:
            shards = engine.model.shards()
            box = shards[next(name for name in shards if name.startswith("layers.") and shards[name].local.numel())]
            box.local.view(-1)[0] = torch.nan
        result = engine.step(slice_batch(cell.problem, 0, engine), LEARNING_RATE)
        seen.append((result.loss, result.grad_norm))
        engine.close()
    return seen


def test_all_ranks_see_that_a_number_of_one_of_them_is_none():
    cells = [
        Cell(HARD, 4, {}),
        Cell(HARD, 4, {"zero_stage": 3}),
        Cell(HARD, 4, {"pipeline_parallel": 2}),
        Cell(HARD, 4, {"context_parallel": 2, "tensor_parallel": 2}),
        Cell(HARD, 4, {"pipeline_parallel": 2, "tensor_parallel": 2}),
    ]
    for rank in run_distributed(results_after_damage, 4, cells):
        for cell, (loss, norm) in zip(cells, rank, strict=True):
            assert math.isnan(loss), cell
            assert math.isnan(norm), cell
