"""What operations with a backward pass of their own share."""

from __future__ import annotations

import pytest
import torch

from ptm_dist.kernels import backward


@pytest.mark.parametrize("shape", [(7, 3), (1, 40), (5,), (0, 3)], ids=str)
@pytest.mark.parametrize("to", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("of", [torch.float32, torch.bfloat16])
def test_pieces_are_scaled_as_the_whole_is(monkeypatch, shape, of, to):
    monkeypatch.setattr(backward, "_PIECE", 8)
    tensor, scale = torch.randn(shape).to(of), torch.tensor(0.37)
    found = backward.scaled(tensor, scale, to)
    assert found.dtype == to
    assert torch.equal(found, (tensor.float() * scale).to(to))
