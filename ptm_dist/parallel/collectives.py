"""Collectives with a gradient, between the regions of a tensor-parallel model.

A *whole* region holds every position on each rank, a *split* region (sequence parallelism) a range of
positions ``[batch, seq / ranks, hidden]``. Each pair below is its own transpose, as in Megatron-LM
(arXiv 1909.08053, section 3; arXiv 2205.05198, section 4.2.2).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ptm_dist.parallel.mesh import RankGroup

# torch 2.13 gives two collectives new names and warns about the old ones, which torch 2.11 alone knows.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def gather_sequence(split: Tensor, ranks: RankGroup) -> Tensor:
    """All ranks' positions in order: ``[batch, seq / ranks, hidden]`` to ``[batch, seq, hidden]``."""
    batch, positions, hidden = split.shape
    gathered = split.new_empty(ranks.size, batch, positions, hidden)
    _all_gather(gathered.view(-1), split.contiguous().view(-1), group=ranks.group)
    return gathered.transpose(0, 1).reshape(batch, ranks.size * positions, hidden)


def reduce_scatter_sequence(partial: Tensor, ranks: RankGroup) -> Tensor:
    """Sum over ranks, each keeping its positions: ``[batch, seq, hidden]`` to ``[batch, seq / ranks, hidden]``."""
    batch, seq, hidden = partial.shape
    by_rank = partial.view(batch, ranks.size, seq // ranks.size, hidden).transpose(0, 1).contiguous()
    reduced = partial.new_empty(batch, seq // ranks.size, hidden)
    _reduce_scatter(reduced.view(-1), by_rank.view(-1), group=ranks.group)
    return reduced


def _sum(tensor: Tensor, ranks: RankGroup) -> Tensor:
    return ranks.sum(tensor.clone(memory_format=torch.contiguous_format))


class _Enter(torch.autograd.Function):
    """Forward: nothing. Backward: sum, since each rank's matrix shard adds its share to the gradient."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, ranks: RankGroup) -> Tensor:
        ctx.ranks = ranks
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _sum(gradients[0], ctx.ranks), None


class _Leave(torch.autograd.Function):
    """Forward: sum of the ranks' shares. Backward: nothing."""

    @staticmethod
    def forward(ctx: Any, partial: Tensor, ranks: RankGroup) -> Tensor:
        return _sum(partial, ranks)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _EnterSplit(torch.autograd.Function):
    """Forward: gather positions. Backward: sum and keep one's own positions."""

    @staticmethod
    def forward(ctx: Any, split: Tensor, ranks: RankGroup) -> Tensor:
        ctx.ranks = ranks
        return gather_sequence(split, ranks)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return reduce_scatter_sequence(gradients[0].contiguous(), ctx.ranks), None


class _LeaveSplit(torch.autograd.Function):
    """Forward: sum and keep one's own positions. Backward: gather positions."""

    @staticmethod
    def forward(ctx: Any, partial: Tensor, ranks: RankGroup) -> Tensor:
        ctx.ranks = ranks
        return reduce_scatter_sequence(partial.contiguous(), ranks)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gather_sequence(gradients[0], ctx.ranks), None


class _GatherPositions(torch.autograd.Function):
    """Forward: gather positions. Backward: keep one's own, since every rank computes the same from the whole."""

    @staticmethod
    def forward(ctx: Any, split: Tensor, ranks: RankGroup) -> Tensor:
        ctx.ranks = ranks
        return gather_sequence(split, ranks)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].chunk(ctx.ranks.size, dim=1)[ctx.ranks.rank], None


def gather_positions(split: Tensor, ranks: RankGroup) -> Tensor:
    """From split positions to a region where every rank computes the same: ``[batch, seq, hidden]``."""
    return _GatherPositions.apply(split, ranks)


def enter(hidden: Tensor, ranks: RankGroup, *, sequence_parallel: bool) -> Tensor:
    """Into a region where each rank applies its share of a matrix: ``[batch, seq, hidden]`` on every rank."""
    return (_EnterSplit if sequence_parallel else _Enter).apply(hidden, ranks)


def leave(partial: Tensor, ranks: RankGroup, *, sequence_parallel: bool) -> Tensor:
    """Out of that region: the sum of the ranks' shares, whole or one range of positions per rank."""
    return (_LeaveSplit if sequence_parallel else _Leave).apply(partial, ranks)
