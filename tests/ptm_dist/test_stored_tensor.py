"""Parts of saved tensors: the right values, and no more bytes than it takes."""

from __future__ import annotations

import io
import os
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader

from ptm_dist.checkpoint.state import load_state
from ptm_dist.checkpoint.stored_tensor import StoredTensor, find_tensor
from ptm_dist.errors import CheckpointError
from ptm_dist.parallel.control import ALONE
from ptm_dist.parallel.shards import LocalShard

AROUND = b"x" * 1000


@pytest.fixture
def store(tmp_path):
    """Puts a tensor into a file, other bytes around it: the open file, its first byte there, and its bytes."""
    with ExitStack() as files:

        def put(values: torch.Tensor) -> tuple[io.FileIO, int, int]:
            archive = io.BytesIO()
            torch.save(values, archive)
            (tmp_path / "file").write_bytes(AROUND + archive.getvalue() + AROUND)
            file = files.enter_context((tmp_path / "file").open("rb", buffering=0))
            return file, len(AROUND), len(archive.getvalue())

        yield put


def found(place: tuple[io.FileIO, int, int]) -> StoredTensor:
    stored = find_tensor(*place)
    assert stored is not None
    return stored


def bytes_read() -> int:
    """By system calls of this process so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


def random_box(shape: tuple[int, ...], generator: torch.Generator) -> tuple[slice, ...]:
    ends = [sorted(torch.randperm(size + 1, generator=generator)[:2].tolist()) for size in shape]
    return tuple(slice(begin, end) for begin, end in ends)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("shape", [(), (1,), (50,), (7, 5), (40, 3000), (3, 4, 5), (5, 6, 700, 2)], ids=str)
def test_any_box_of_any_tensor_is_read_as_it_was_saved(shape, dtype, store):
    generator = torch.Generator().manual_seed(3)
    values = torch.randint(-100, 100, shape, generator=generator).to(dtype)
    stored = found(store(values))
    assert (stored.shape, stored.dtype) == (shape, dtype)
    for _ in range(20):
        box = random_box(shape, generator)
        target = torch.zeros_like(values[box])
        stored.read_box(tuple(part.start for part in box), target)
        assert torch.equal(target, values[box])


def test_a_box_is_read_into_a_part_of_memory_and_into_another_number_format(store):
    values = torch.randn(2100, 2100, generator=torch.Generator().manual_seed(3))  # more than one block of rows
    stored = found(store(values))
    columns = torch.zeros(2100, 9)
    stored.read_box((0, 1000), columns[:, 2:7])
    assert torch.equal(columns[:, 2:7], values[:, 1000:1005])
    assert not columns[:, :2].any()
    assert not columns[:, 7:].any()
    halves = torch.zeros(2000, 1050, dtype=torch.bfloat16)
    stored.read_box((100, 1050), halves)
    assert torch.equal(halves, values[100:, 1050:].bfloat16())


@pytest.mark.parametrize(
    ("box", "needed"),
    [
        ((slice(10, 20), slice(0, 4096)), 10 * 4096),
        ((slice(0, 64), slice(1024, 2048)), 64 * 1024),
        ((slice(0, 64), slice(100, 4000)), 64 * 4096),  # gaps are shorter than a page: whole rows
    ],
)
def test_the_bytes_that_are_read_are_those_of_the_box(box, needed, store):
    values = torch.randn(64, 4096, generator=torch.Generator().manual_seed(3))
    file, begin, length = store(values)
    target = torch.empty_like(values[box], memory_format=torch.contiguous_format)
    before = bytes_read()
    stored = found((file, begin, length))
    stored.read_box(tuple(part.start for part in box), target)
    read = bytes_read() - before
    assert torch.equal(target, values[box])
    assert 4 * needed <= read < 4 * needed + 3000, "what describes the tensor is 3 kB at most"


def test_values_in_another_order_are_read_whole(store, tmp_path):
    values = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
    for other in (values.t(), values[:, 2:5], values[2:]):
        assert find_tensor(*store(other)) is None
    torch.distributed.checkpoint.save({"w": values.t()}, checkpoint_id=tmp_path / "saved", no_dist=True)
    (place,) = FileSystemReader(tmp_path / "saved").read_metadata().storage_data.values()
    with (tmp_path / "saved" / place.relative_path).open("rb", buffering=0) as file:
        assert find_tensor(file, place.offset, place.length) is None, "the case is not the one that is meant"
    part = LocalShard(torch.zeros(3, 4), (8, 6), (4, 1))
    load_state({"w": part}, tmp_path / "saved", ALONE)
    assert torch.equal(part.local, values.t()[4:7, 1:5])


def test_a_file_that_ends_too_early_or_is_no_archive_is_damaged(store, tmp_path):
    stored = found(store(torch.ones(1000, 10)))
    os.truncate(tmp_path / "file", stored.begin + 4 * 5000)
    with pytest.raises(CheckpointError, match=rf"file ends too early, at byte {stored.begin + 20_000};"):
        stored.read_box((0, 0), torch.zeros(1000, 10))
    (tmp_path / "file").write_bytes(AROUND)
    with (tmp_path / "file").open("rb", buffering=0) as file, pytest.raises(CheckpointError, match="is damaged"):
        find_tensor(file, 0, len(AROUND))
