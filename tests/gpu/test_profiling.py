"""Steps recorded on CUDA; `make gpu-test`."""

from __future__ import annotations

import re

import pytest
import torch

from tests.ptm_dist.runs import make_recipe, run_alone, write_data

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_kernels_come_first_and_operations_have_the_time_of_those_they_start(tmp_path):
    write_data(tmp_path / "data")
    recipe = make_recipe(tmp_path, "a", logging={"profile": True, "profile_steps": 2}, launch={"device": "cuda"})
    run_alone(recipe)
    (path,) = (recipe.directory / "profile").glob("top-operations-*.txt")
    text = path.read_text()
    wall, kernels = (float(found) for found in re.findall(r"^([\d.]+) ms of", text, re.MULTILINE))
    assert 0 < kernels < wall
    first, second = text.index("\nKernels\n"), text.index("\nOperations and shapes")
    assert first < second
    assert re.search(r"aten::\w*mm \d+x\d+", text[second:])
