from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ptm_dist.checkpoint.state import load_state, save_state, saved_shapes
from ptm_dist.errors import CheckpointError
from ptm_dist.parallel.control import ALONE, control_group
from ptm_dist.parallel.shards import LocalShard, chunk_range
from tests.distributed import run_distributed

SHAPES = {"rows": (7, 5), "columns": (4, 6), "vector": (3,), "scalar": (), "whole": (2, 3, 2)}


def whole(name: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(name))
    return torch.randn(SHAPES[name], generator=generator)


def box(name: str, rank: int, size: int, fill: bool) -> LocalShard:
    full = whole(name)
    offset = [0] * full.dim()
    local = full
    if name in ("rows", "vector"):
        begin, end = chunk_range(full.shape[0], size, rank)
        offset[0], local = begin, full[begin:end]
    elif name == "columns":
        begin, end = chunk_range(full.shape[1], size, rank)
        offset[1], local = begin, full[:, begin:end]
    if not fill:
        local = torch.full_like(full, torch.nan)[tuple(slice(0, n) for n in local.shape)]
    return LocalShard(local, tuple(full.shape), tuple(offset))


def state(rank: int, size: int, fill: bool) -> dict[str, LocalShard]:
    return {name: box(name, rank, size, fill) for name in SHAPES}


def save_here(folder: str) -> int:
    save_state(state(dist.get_rank(), dist.get_world_size(), fill=True), Path(folder), control_group())
    return Path(folder, f"__{dist.get_rank()}_0.distcp").stat().st_size


def load_here(folder: str) -> bool:
    rank, size = dist.get_rank(), dist.get_world_size()
    loaded = state(rank, size, fill=False)
    load_state(loaded, Path(folder), control_group())
    return all(torch.equal(loaded[name].local, box(name, rank, size, fill=True).local) for name in SHAPES)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (2, 3), (3, 2), (4, 1)])
def test_a_state_saved_by_some_ranks_loads_bitwise_on_others(tmp_path, before, after):
    if before == 1:
        save_state(state(0, 1, fill=True), tmp_path, ALONE)
    else:
        run_distributed(save_here, before, str(tmp_path))
    if after == 1:
        loaded = state(0, 1, fill=False)
        load_state(loaded, tmp_path, ALONE)
        assert all(torch.equal(loaded[name].local, whole(name)) for name in SHAPES)
    else:
        assert all(run_distributed(load_here, after, str(tmp_path)))


def test_a_tensor_that_all_ranks_hold_is_written_once(tmp_path):
    saved_by_one, saved_by_three = tmp_path / "one", tmp_path / "three"
    for folder in (saved_by_one, saved_by_three):
        folder.mkdir()
    replicated = {"x": LocalShard(torch.randn(100, 1000), (100, 1000), (0, 0))}
    save_state(replicated, saved_by_one, ALONE)
    one = sum(path.stat().st_size for path in saved_by_one.glob("*.distcp"))
    run_distributed(save_replicated, 3, str(saved_by_three))
    three = sum(path.stat().st_size for path in saved_by_three.glob("*.distcp"))
    assert 400_000 < three < one + 5_000


def save_replicated(folder: str) -> None:
    save_state({"x": LocalShard(torch.zeros(100, 1000), (100, 1000), (0, 0))}, Path(folder), control_group())


def test_names_and_global_shapes_can_be_read_without_the_data(tmp_path):
    run_distributed(save_here, 2, str(tmp_path))
    assert saved_shapes(tmp_path) == SHAPES


def test_a_state_of_another_shape_or_name_is_refused_before_anything_is_read(tmp_path):
    save_state({"a": LocalShard(torch.zeros(3), (3,), (0,))}, tmp_path, ALONE)
    mine = torch.ones(4)
    with pytest.raises(CheckpointError, match=r"a: \(3,\) in the checkpoint, \(4,\) here.*b: missing"):
        load_state({"a": LocalShard(mine, (4,), (0,)), "b": LocalShard(mine, (4,), (0,))}, tmp_path, ALONE)
    assert torch.equal(mine, torch.ones(4))


def fail_to_save(folder: str) -> str:
    shards = state(dist.get_rank(), dist.get_world_size(), fill=True)
    target = Path(folder, "missing" if dist.get_rank() == 1 else "")
    if dist.get_rank() == 1:
        Path(folder, "missing").write_text("a file where a directory should be")
    try:
        save_state(shards, target, control_group())
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return "saved"


def test_an_error_on_one_rank_raises_on_all_and_nobody_hangs(tmp_path):
    other, own = run_distributed(fail_to_save, 2, str(tmp_path), timeout=60.0)
    assert own.startswith("NotADirectoryError")
    assert other.startswith("PeerError: rank 1 failed: NotADirectoryError")
