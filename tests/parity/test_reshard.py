"""A checkpoint of any layout loads at any other: weights and moments bitwise equal after gathering."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import torch

from ptm_dist.checkpoint.state import load_state, save_state
from ptm_dist.parallel.control import control_group
from tests.distributed import run_distributed
from tests.parity.cells import LEARNING_RATE, Cell, Problem, gather, slice_batch
from tests.parity.layouts import DOUBLE

HARD = {family: Problem(family, tied=True, vocab_size=101, num_layers=5) for family in ("gpt2", "albert")}
EVERY_LAYOUT = {setting.name: (setting.world_size, setting.layout) for setting in DOUBLE if setting.world_size <= 4}
SAVED_AT = ["one process", "ZeRO-3 x3", "HSDP 2x2 (ZeRO-3)", "ZeRO-3 x2, TP 2 + SP", "PP 2 zbv_zero_bubble, ZeRO-3 x2"]


def train_and_save(cell: Cell, directory: Path) -> dict[str, torch.Tensor]:
    engine = cell.engine()
    for step in range(2):
        engine.step(slice_batch(cell.problem, step, engine), LEARNING_RATE)
    save_state(engine.state(), directory, control_group())
    return gather(engine.state())


def load_at(cells: list[Cell], directory: Path) -> list[dict[str, torch.Tensor]]:
    states = []
    for cell in cells:
        engine = cell.engine()
        load_state(engine.state(), directory, control_group())
        states.append(gather(engine.state()))
    return states


@pytest.mark.parametrize(("source", "family"), [*((source, "gpt2") for source in SAVED_AT), (SAVED_AT[-1], "albert")])
def test_every_layout_loads_the_same_bits(source, family, tmp_path):
    world, layout = EVERY_LAYOUT[source]
    problem = HARD[family]
    saved = run_distributed(train_and_save, world, Cell(problem, world, layout), tmp_path)[0]
    by_world = defaultdict(list)
    for name, (size, other) in EVERY_LAYOUT.items():
        by_world[size].append((name, Cell(problem, size, other)))
    for size, targets in by_world.items():
        states = run_distributed(load_at, size, [cell for _, cell in targets], tmp_path)[0]
        for (name, _), state in zip(targets, states, strict=True):
            assert state.keys() == saved.keys()
            assert all(torch.equal(state[key], saved[key]) for key in saved), name
