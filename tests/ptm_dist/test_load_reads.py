"""Of a checkpoint that another layout saved, a rank reads the bytes that it will hold, into the memory they stay in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ptm_dist.checkpoint.layout_boxes import boxes_of_layout
from ptm_dist.checkpoint.state import load_state, save_state
from ptm_dist.models import parameter_shapes
from ptm_dist.parallel.control import control_group
from ptm_dist.parallel.shards import LocalShard
from ptm_dist.recipe.layout import resolve_layout
from ptm_dist.recipe.schema import Recipe
from tests.distributed import run_distributed
from tests.ptm_dist.recipes import small_recipe

RANKS = 4
LAYOUTS = {
    "data parallel": {},
    "TP 4": {"tensor_parallel": 4},
    "ZeRO-3 x4": {"zero_stage": 3},
    "PP 2, ZeRO-3 x2": {"pipeline_parallel": 2, "zero_stage": 3},
}
ALLOWANCE = 16 << 20
"""Bytes of memory: the largest part of a saved box that lies apart, the plan, and what the allocator keeps."""


def recipe() -> Recipe:
    """Rows of 6 kB and more: a quarter of one is further from the next quarter than a page."""
    sizes = {"hidden_size": 1480, "ffn_hidden_size": 1500, "num_layers": 2, "num_heads": 4, "vocab_size": 101}
    return small_recipe(**{f"model__{name}": value for name, value in sizes.items()})


def boxes(layout: dict[str, int], rank: int) -> dict[str, LocalShard]:
    """What a rank holds, every element its place in its tensor."""
    chosen = recipe()
    section = chosen.layout.model_copy(update=layout)
    shapes = parameter_shapes(chosen.model)
    held = {}
    for name, (offset, shape) in boxes_of_layout(chosen.model, resolve_layout(section, RANKS), rank).items():
        whole = torch.arange(torch.Size(shapes[name]).numel(), dtype=torch.float32).view(shapes[name])
        box = LocalShard(torch.empty(shape), shapes[name], offset)
        box.local.copy_(box.cut(whole))
        held[f"model.{name}"] = box
    return held


def save_at(layout: dict[str, int], directory: Path) -> None:
    save_state(boxes(layout, torch.distributed.get_rank()), directory, control_group())


def status(key: str) -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
    return 1024 * int(line.split()[1])


def load_at(layout: dict[str, int], directory: Path) -> tuple[int, int, int, bool]:
    """Bytes held, read, and of memory that loading took besides, and whether the values are right."""
    control = control_group()
    wanted = boxes(layout, control.rank)
    state = {name: LocalShard(torch.ones_like(b.local) / 3, b.global_shape, b.offset) for name, b in wanted.items()}
    Path("/proc/self/clear_refs").write_text("5")
    memory, before = status("VmRSS"), int(Path("/proc/self/io").read_text().split()[1])
    load_state(state, directory, control)
    read, grown = int(Path("/proc/self/io").read_text().split()[1]) - before, status("VmHWM") - memory
    held = sum(4 * box.local.numel() for box in wanted.values())
    return held, read, grown, all(torch.equal(state[name].local, box.local) for name, box in wanted.items())


@pytest.mark.parametrize(
    ("source", "target"),
    [("TP 4", "ZeRO-3 x4"), ("ZeRO-3 x4", "TP 4"), ("data parallel", "ZeRO-3 x4"), ("TP 4", "PP 2, ZeRO-3 x2")],
)
def test_a_rank_reads_what_it_holds_and_little_else(source, target, tmp_path):
    run_distributed(save_at, RANKS, LAYOUTS[source], tmp_path)
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    for held, read, grown, is_right in run_distributed(load_at, RANKS, LAYOUTS[target], tmp_path):
        assert is_right
        assert held < 0.3 * total, "the bounds below would say little"
        assert held <= read < 1.01 * held, "what says where boxes lie is less than one in a hundred"
        assert grown < ALLOWANCE < 0.25 * total
