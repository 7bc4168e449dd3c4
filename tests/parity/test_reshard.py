"""A checkpoint of any layout loads at any other: weights and moments bitwise equal after gathering.

Every layout trains two steps of its own and saves; what it gathers then is what every other one has to find in its
files. The sizes are such that no number of ranks divides them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from ptm_dist.checkpoint.state import load_state, save_state
from ptm_dist.engines.native import NativeEngine
from ptm_dist.parallel.boxes import boxes_of
from ptm_dist.parallel.control import control_group
from tests.distributed import run_distributed
from tests.parity.cells import LEARNING_RATE, Cell, Problem, gather, slice_batch
from tests.parity.layouts import DOUBLE, Setting

FAMILIES = {
    "gpt2": Problem("gpt2", tied=True, vocab_size=101, num_layers=5),
    "albert": Problem("albert", tied=True, vocab_size=101, num_layers=5, layer_groups=2),
}
SETTINGS = {setting.name: setting for setting in DOUBLE if setting.world_size <= 4}
REPRESENTATIVE = [
    "one process",
    "ZeRO-2 x2",
    "TP 2 + SP",
    "PP 2 interleaved_1f1b",
    "ZeRO-1 x3",
    "ZeRO-3 x3",
    "TP 3 (heads 2, 1, 1)",
    "PP 3 1f1b, cut by hand",
    "HSDP 2x2 (ZeRO-3)",
    "ZeRO-3 x2, TP 2 + SP",
    "CP 2 ring, ZeRO-3 x2",
    "PP 2 1f1b, TP 2 + SP",
    "PP 2 zbv_zero_bubble, ZeRO-3 x2",
]
CUT_MOST = "PP 2 zbv_zero_bubble, ZeRO-3 x2"
LOSS_TOLERANCE = 1e-12
"""Relative, in float64: layouts add up in other orders."""


def by_world(names: Iterable[str]) -> dict[int, list[str]]:
    worlds: dict[int, list[str]] = defaultdict(list)
    for name in names:
        worlds[SETTINGS[name].world_size].append(name)
    return worlds


def engine_at(family: str, setting: Setting) -> tuple[Problem, NativeEngine]:
    cell = Cell(FAMILIES[family], setting.world_size, setting.layout, setting.accumulation)
    return cell.problem, cell.engine()


def train_and_save(names: list[str], root: Path) -> None:
    """Leaves a checkpoint of each family at each layout, and beside it the whole state and the next loss."""
    control = control_group()
    for family in FAMILIES:
        for name in names:
            problem, engine = engine_at(family, SETTINGS[name])
            for step in range(2):
                engine.step(slice_batch(problem, step, engine), LEARNING_RATE)
            place = root / family / name
            control.from_first(lambda place=place: place.mkdir(parents=True))
            save_state(engine.state(), place, control)
            whole = gather(engine.state())
            loss = engine.evaluate([slice_batch(problem, 2, engine)]).loss
            control.from_first(lambda place=place, it=(whole, loss): torch.save(it, place / "whole.pt"))
            engine.close()


def load_all(family: str, names: list[str], sources: list[str], root: Path) -> tuple[int, list[str]]:
    """Boxes that this rank compared, and the pairs of layouts that went wrong."""
    control = control_group()
    saved = {source: torch.load(root / family / source / "whole.pt") for source in sources}
    compared, wrong = 0, []
    for name in names:
        problem, engine = engine_at(family, SETTINGS[name])
        for source, (whole, _) in saved.items():
            boxes = {key: boxes_of(held) for key, held in engine.state().items()}
            for box in (box for held in boxes.values() for box in held):
                box.local.fill_(torch.nan)
            load_state(engine.state(), root / family / source, control)
            different = [
                key for key, held in boxes.items() if not all(torch.equal(b.local, b.cut(whole[key])) for b in held)
            ]
            wrong += [f"{source} -> {name}: {key}" for key in different]
            compared += len(boxes)
        loss = saved[sources[-1]][1]
        engine.loaded(2)
        found = engine.evaluate([slice_batch(problem, 2, engine)]).loss
        if not abs(found - loss) <= LOSS_TOLERANCE * abs(loss):
            wrong.append(f"{sources[-1]} -> {name}: the next loss is {found}, not {loss}")
        engine.close()
    return compared, wrong


def check(family: str, targets: Iterable[str], sources: list[str], root: Path) -> None:
    for world, names in by_world(targets).items():
        for rank, (compared, wrong) in enumerate(run_distributed(load_all, world, family, names, sources, root)):
            assert compared > 3 * len(names) * len(sources), f"rank {rank} of {world} has looked at nothing"
            assert wrong == [], f"rank {rank} of {world}"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Checkpoints by family and layout; gathering them has proved that the ranks hold every element."""
    root = tmp_path_factory.mktemp("saved")
    for world, names in by_world(REPRESENTATIVE).items():
        run_distributed(train_and_save, world, names, root)
    return root


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_finds_the_same_bits_in_the_checkpoint_of_every_other(family, saved):
    check(family, REPRESENTATIVE, REPRESENTATIVE, saved)


def test_every_layout_of_the_parity_table_loads_the_checkpoint_that_is_cut_most(saved):
    # Recomputing cuts nothing.
    others = [name for name in SETTINGS if name not in REPRESENTATIVE and "recompute" not in name]
    check("gpt2", others, [CUT_MOST], saved)
