"""Context parallelism: positions of a sequence on several ranks, the same numbers as on one."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from ptm_dist.models.attention import Sight
from ptm_dist.parallel.context import context_mixer, window
from ptm_dist.parallel.mesh import RankGroup
from tests.distributed import run_distributed

METHODS = ("ring", "ulysses")
LENGTHS = (8, 9, 13, 3)
HEADS = (4, 3, 1)
BATCH, HEAD_SIZE = 2, 8


def sights(length: int) -> dict[str, Sight]:
    """Every way to see that models of this package have, on sequences of a length."""
    places = torch.arange(length)
    valid = places < torch.tensor([[length], [max(1, length // 2)]])
    documents = torch.stack([places // 3, (places > 0).long()])
    return {
        "causal": Sight(causal=True),
        "full": Sight(causal=False),
        "band": Sight(causal=True, band=3),
        "padding": Sight(causal=False, valid=valid),
        "documents": Sight(causal=True, documents=documents),
        "documents in a band": Sight(causal=True, band=3, documents=documents),
    }


def whole_world() -> RankGroup:
    return RankGroup(dist.group.WORLD, dist.get_rank(), dist.get_world_size())


def inputs(length: int, heads: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Queries, keys, values and the gradient of the output."""
    draw = torch.Generator().manual_seed(length * 10 + heads)
    return [torch.randn(BATCH, heads, length, HEAD_SIZE, generator=draw, dtype=dtype) for _ in range(4)]


def attention(mixer, seen, tensors):
    """Output and the gradients of queries, keys and values."""
    *leaves, grad = tensors
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    output = mixer.mix(*leaves, seen)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def plain_attention(sight: Sight, tensors):
    """The same by torch in one process, float64."""
    *leaves, grad = (tensor.double() for tensor in tensors)
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    everywhere = torch.arange(grad.shape[2])
    output = F.scaled_dot_product_attention(*leaves, attn_mask=sight.mask(everywhere, everywhere))
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def worst_errors(methods, lengths, heads, dtype):
    ranks = whole_world()
    found = {}
    for length, count in itertools.product(lengths, heads):
        held = window(length, ranks, torch.device("cpu"))
        tensors = inputs(length, count, dtype)
        for name, sight in sights(length).items():
            expected = plain_attention(sight, tensors)
            for method in methods:
                mixer = context_mixer(method, ranks)
                shares = [tensor[:, :, held.positions] for tensor in tensors]
                got = attention(mixer, mixer.prepare(sight, held), shares)
                assert all(one.dtype == dtype for one in got)
                found[method, name, length, count] = max(
                    (one.double() - other[:, :, held.positions]).abs().max().item() if one.numel() else 0.0
                    for one, other in zip(got, expected, strict=True)
                )
    return found


@pytest.mark.parametrize("world", [2, 3, 4])
def test_attention_over_several_ranks_is_attention(world):
    for errors in run_distributed(worst_errors, world, METHODS, LENGTHS, HEADS, torch.float64):
        assert {case: error for case, error in errors.items() if not error < 1e-13} == {}
