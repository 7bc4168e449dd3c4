from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from ptm_dist.checkpoint.state import load_state, save_state
from ptm_dist.parallel.boxes import boxes_of, boxes_of_range, global_shape_of
from ptm_dist.parallel.control import ALONE, control_group
from ptm_dist.parallel.shards import LocalShard
from tests.distributed import run_distributed

SHAPES = {"matrix": (7, 5), "cube": (2, 3, 4), "vector": (5,), "single": (1, 9)}


def whole(name: str) -> torch.Tensor:
    return torch.arange(math.prod(SHAPES[name]), dtype=torch.float32).view(SHAPES[name])


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_the_boxes_of_a_range_cut_just_its_elements_out_of_the_tensor(shape, data):
    size = math.prod(shape)
    begin = data.draw(st.integers(0, size))
    end = data.draw(st.integers(begin, size))
    elements = torch.arange(size)
    boxes = boxes_of_range(elements[begin:end], tuple(shape), begin)
    found = torch.cat([box.cut(elements.view(shape)).flatten() for box in boxes])
    assert torch.equal(found, elements[begin:end])
    assert all(torch.equal(box.cut(elements.view(shape)), box.local) for box in boxes)
    assert len(boxes) <= max(1, 2 * len(shape) - 1)


def test_writing_to_the_boxes_of_a_range_writes_the_range():
    values = torch.zeros(17)
    for box in boxes_of_range(values, (7, 5), 3):
        box.local.copy_(box.cut(whole("matrix")))
    assert torch.equal(values, torch.arange(3.0, 20.0))


def flat_state(fill: float | None) -> dict[str, tuple[LocalShard, ...]]:
    """Every tensor flattened and cut between the ranks, with borders in the middle of rows."""
    rank, size = dist.get_rank(), dist.get_world_size()
    state = {}
    for name, shape in SHAPES.items():
        elements = whole(name).flatten()
        borders = [round(elements.numel() * part / size) for part in range(size + 1)]
        values = elements[borders[rank] : borders[rank + 1]].clone()
        state[name] = boxes_of_range(values if fill is None else values.fill_(fill), shape, borders[rank])
    return state


def save_flat(folder: str) -> None:
    save_state(flat_state(None), Path(folder), control_group())


def load_flat(folder: str) -> bool:
    loaded = flat_state(torch.nan)
    load_state(loaded, Path(folder), control_group())
    return all(torch.equal(box.local, box.cut(whole(name))) for name, held in loaded.items() for box in boxes_of(held))


def test_ranges_saved_by_three_ranks_load_as_whole_tensors_and_as_the_ranges_of_two(tmp_path):
    run_distributed(save_flat, 3, str(tmp_path))
    wholes = {
        name: LocalShard(torch.full(shape, torch.nan), shape, (0,) * len(shape)) for name, shape in SHAPES.items()
    }
    load_state(wholes, tmp_path, ALONE)
    assert all(torch.equal(wholes[name].local, whole(name)) for name in SHAPES)
    assert run_distributed(load_flat, 2, str(tmp_path)) == [True, True]


def test_a_rank_without_elements_still_knows_the_shape():
    assert global_shape_of(boxes_of_range(torch.empty(0), (7, 5), 35)) == (7, 5)
