"""Archives that are written without torch, judged by torch and by Python's own reader of zip files."""

from __future__ import annotations

import subprocess
import sys
import zipfile

import pytest
import torch

from ptm_dist.checkpoint.plan import pickled_tensor
from ptm_dist.checkpoint.state import bytes_of
from ptm_dist.keeper.archive import DataFile, archive_length

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32]


def write(path, tensors):
    with DataFile(path) as file:
        for tensor in tensors:
            file.add(pickled_tensor(tuple(tensor.shape), tensor.dtype), bytes_of(tensor))
    return file


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5, 2), (1000, 7)])
def test_torch_loads_what_was_written_with_and_without_mapping_it(tmp_path, dtype, shape):
    tensor = (100 * torch.randn(shape)).to(dtype)
    write(tmp_path / "file", [tensor])
    for is_mapped in (False, True):
        loaded = torch.load(tmp_path / "file", weights_only=True, mmap=is_mapped)
        assert loaded.dtype == dtype
        assert torch.equal(loaded, tensor)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_pickled_is_what_torch_pickles(tmp_path, dtype):
    tensor = torch.ones((4, 3), dtype=dtype)
    torch.save(tensor, tmp_path / "theirs")
    with zipfile.ZipFile(tmp_path / "theirs") as archive:
        assert archive.read("theirs/data.pkl") == pickled_tensor((4, 3), dtype)


def test_lengths_are_known_before_and_check_sums_hold(tmp_path):
    tensors = [torch.randn(7), torch.randn(50, 50).to(torch.bfloat16), torch.tensor(3.0)]
    file = write(tmp_path / "file", tensors)
    lengths = [archive_length(pickled_tensor(tuple(t.shape), t.dtype), t.nbytes) for t in tensors]
    content = (tmp_path / "file").read_bytes()
    assert sum(lengths) == file.size == len(content)
    begin = 0
    for number, length in enumerate(lengths):
        part = tmp_path / f"part-{number}"
        part.write_bytes(content[begin : begin + length])
        with zipfile.ZipFile(part) as archive:
            assert archive.testzip() is None
        assert torch.equal(torch.load(part, weights_only=True), tensors[number])
        begin += length


def test_a_tensor_that_does_not_lie_in_one_piece_is_written_in_its_own_order(tmp_path):
    tensor = torch.arange(12.0).view(3, 4)[:, 1:3].t()
    write(tmp_path / "file", [tensor])
    assert torch.equal(torch.load(tmp_path / "file", weights_only=True), tensor)


def test_the_process_beside_a_rank_never_imports_torch():
    code = "import sys, pkgutil, importlib, ptm_dist.keeper as k\n"
    code += "for m in pkgutil.iter_modules(k.__path__, 'ptm_dist.keeper.'): importlib.import_module(m.name)\n"
    code += "print(sorted({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
